"""Fingerprints of layers and arguments. Calls with equal fingerprints do the same work."""

from __future__ import annotations

import functools
from collections import UserDict
from collections.abc import Hashable
from enum import Enum, auto
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from moetool.anatomy.structure.model_modules import ModelModules

# Attributes by which a layer finds its slot in the cache. Equal layers differ in them.
_INDEX_NAMES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})
# Attributes that every module has don't bear on its work, nor does a replaced `forward`.
_SAYS_NOTHING = (frozenset(vars(nn.Module())) - {"training"}) | {"forward"}
# Fields of configurations whose numbers are not layers.
_NOT_BY_LAYER = frozenset({"id2label"})
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, type, torch.dtype, torch.device)
# The classes of nearly all plain values, which are looked up faster than their bases.
PLAIN_CLASSES = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device})
_CODE = (FunctionType, BuiltinFunctionType)
_ROWS = (tuple, list)
# Values of these classes are described in different ways: each by the first that it is of.
_BASES = (torch.Tensor, _PLAIN, _ROWS, dict, UserDict, Cache, BlockMask, functools.partial)


class Holding(Enum):
    """The ways in which a module holds values."""

    ATTRIBUTES = auto()
    PARAMETERS = auto()
    BUFFERS = auto()

    # Enum's own takes the hash of the name, in Python. A large model's modules have a million.
    __hash__ = object.__hash__

    def find_in(self, module: nn.Module) -> dict[str, Any]:
        """Return the dictionary in which a module holds such values, among others."""
        if self is Holding.ATTRIBUTES:
            return vars(module)
        return module._parameters if self is Holding.PARAMETERS else module._buffers


# A module's class, its attributes, parameters and buffers by name, and its configurations' entries
# for its layer.
_OfModule = tuple[type, tuple[tuple[Holding, str, Hashable], ...], Hashable]
# Fingerprints of a layer's modules, by their path in it.
OfLayer = tuple[tuple[str, _OfModule], ...]


class Difference(NamedTuple):
    """Where the fingerprint of a module differs from its earlier one.

    Attributes:
        path: The module's path in its layer.
        holding: Whether it is an attribute, a parameter or a buffer that differs.
        name: Its name in the module.
    """

    path: str
    holding: Holding
    name: str


class Fingerprints:
    """Describes values and modules so that equal descriptions mean equal work on the meta device.

    Tensors are described by shape, strides and dtype, masks of flex attention by their tensors, caches
    by their class alone: `CacheSlots` describes their contents. Objects other than containers, tensors, caches and plain values equal
    only themselves; they are kept alive, so that no identity is used twice.
    """

    def __init__(self) -> None:
        self._kept: dict[int, object] = {}
        self._layer_entries: dict[tuple[int, int], Hashable] = {}

    def of_value(self, value: Any) -> Hashable:
        """Return the fingerprint of anything that a layer is given or holds."""
        kind = value.__class__
        # Most values are of one of these two kinds, in caches and in modules.
        base = torch.Tensor if kind is torch.Tensor else _find_base(kind)
        if base is torch.Tensor:
            return ("tensor", value.shape, value.stride(), value.dtype, value.device)
        if base is _PLAIN:
            return (kind, value)
        if base is _ROWS:
            return (kind, *map(self.of_value, value))
        if base is dict:
            items: list[Hashable] = [kind]
            for name, item in value.items():
                # Fingerprints of other names are tuples.
                items += (
                    name if name.__class__ is str else self.of_value(name),
                    self.of_value(item),
                )
            return tuple(items)
        if base is UserDict:
            return (kind, self.of_value(value.data))
        if base is Cache:
            return ("cache", type(value))
        if base is BlockMask:
            # Which positions it hides changes no sizes.
            tensors = [item for item in value.as_tuple() if isinstance(item, torch.Tensor)]
            return ("block mask", *map(self.of_value, tensors))
        if base is functools.partial:
            return ("partial", *map(self.of_value, (value.func, value.args, value.keywords)))
        self._kept[id(value)] = value
        return (type(value), id(value))

    def of_attributes(self, instance: object) -> Hashable:
        """Return the fingerprint of an object by its class and attributes, of other values by value."""
        if not hasattr(instance, "__dict__") or isinstance(instance, torch.Tensor | dict | list):
            return self.of_value(instance)
        return (type(instance), self.of_value(vars(instance)))

    def list_attributes(self, instance: object, found: list[object]) -> None:
        """Append what the fingerprint of an object by its attributes says, one by one.

        Lists are made and compared in half the time, but can't be looked up.
        """
        if not hasattr(instance, "__dict__") or isinstance(instance, torch.Tensor | dict | list):
            found.append(self.of_value(instance))
        else:
            found.append(type(instance))
            self._list_items(vars(instance), found)

    def _list_items(self, values: dict[Any, Any], found: list[object]) -> None:
        found.append(len(values))
        for name, value in values.items():
            found.append(name if name.__class__ is str else self.of_value(name))
            kind = value.__class__
            if kind is torch.Tensor:
                found += (kind, value.shape, value.stride(), value.dtype, value.device)
            elif kind in PLAIN_CLASSES:
                found += (kind, value)
            elif kind is dict:
                self._list_items(value, found)
            else:
                found.append(self.of_value(value))

    def of_layer(self, layer: ModelModules) -> OfLayer:
        """Return the fingerprint of a layer: its modules and all they hold except their index."""
        first = min(find_layer_indices(layer), default=0)
        return tuple(
            (path, self._of_module(module, first)) for path, module in layer.by_path.items()
        )

    def _of_module(self, module: nn.Module, first_index: int) -> _OfModule:
        held: list[tuple[Holding, str, Hashable]] = []
        by_layer: list[Hashable] = []
        attributes = vars(module)
        for holding, names in (
            (Holding.ATTRIBUTES, _find_own(tuple(attributes))),
            (Holding.PARAMETERS, module._parameters),
            (Holding.BUFFERS, module._buffers),
        ):
            values = holding.find_in(module)
            for name in names:
                value = values[name]
                if name in _INDEX_NAMES and isinstance(value, int):
                    # A layer with two attentions has two indices, of which the difference matters.
                    held.append((holding, name, value - first_index))
                    continue
                held.append((holding, name, self.of_value(value)))
                if isinstance(value, PreTrainedConfig):
                    by_layer.append(self._of_layer_entries(value, first_index))
        return (type(module), tuple(held), tuple(by_layer))

    def _of_layer_entries(self, config: PreTrainedConfig, index: int) -> Hashable:
        """Return the entries of a configuration for the layer at an index.

        A forward may read them, for example the type of its layer.
        """
        if (id(config), index) not in self._layer_entries:
            num_layers = getattr(config, "num_hidden_layers", None) or 0
            self._layer_entries[id(config), index] = tuple(
                (name, self.of_value(_find_entry(value, index, num_layers=num_layers)))
                for name, value in vars(config).items()
                if name not in _NOT_BY_LAYER
            )
        return self._layer_entries[id(config), index]


def list_holdings(module: nn.Module) -> dict[Holding, dict[str, Any]]:
    """Return the values that a module itself holds and that bear on its work."""
    attributes = vars(module)
    return {
        Holding.ATTRIBUTES: {name: attributes[name] for name in _find_own(tuple(attributes))},
        Holding.PARAMETERS: dict(module._parameters),
        Holding.BUFFERS: dict(module._buffers),
    }


@functools.cache
def _find_own(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of a module's attributes that bear on its work.

    Looked up once for each set of attributes: a large model has thousands of modules, and few sets.
    """
    return tuple(name for name in names if name not in _SAYS_NOTHING)


def find_differences(before: OfLayer, after: OfLayer) -> list[Difference] | None:
    """Return where two fingerprints of one layer differ; None if its modules are different ones."""
    found: list[Difference] = []
    if len(before) != len(after):
        return None
    for (path, old), (new_path, new) in zip(before, after, strict=True):
        old_class, old_held, old_by_layer = old
        new_class, new_held, new_by_layer = new
        if (path, old_class, old_by_layer) != (new_path, new_class, new_by_layer):
            return None
        names = {(holding, name) for holding, name, _ in set(old_held) ^ set(new_held)}
        found += [Difference(path, *key) for key in sorted(names, key=lambda key: key[1])]
    return found


def find_layer_indices(layer: ModelModules) -> tuple[int, ...]:
    """Return the layer indices that a layer's modules carry, in ascending order."""
    found = {
        value
        for attributes in map(vars, layer.by_path.values())
        # Most modules have none.
        if not _INDEX_NAMES.isdisjoint(attributes)
        for name in _INDEX_NAMES
        for value in [attributes.get(name)]
        if isinstance(value, int)
    }
    return tuple(sorted(found))


def is_transparent(value: Any) -> bool:
    """Return whether a value's fingerprint says all that matters about it.

    It doesn't for objects that may change between two uses, such as caches.
    """
    base = _find_base(value.__class__)
    if base is _ROWS:
        return all(map(is_transparent, value))
    if base is dict:
        return all(map(is_transparent, value.values()))
    if base is UserDict:
        return is_transparent(value.data)
    return base in (torch.Tensor, BlockMask, _PLAIN) or isinstance(value, _CODE)


def is_tensor_or_plain(value: Any) -> bool:
    """Return whether a value is a tensor, or one that is compared by equality."""
    return _find_base(value.__class__) in (torch.Tensor, _PLAIN)


@functools.cache
def _find_base(kind: type) -> Any:
    """Return the first of `_BASES` that a class is derived from; None if there is none.

    Looked up once for each class: some of them are abstract, and take long to say.
    """
    return next((base for base in _BASES if issubclass(kind, base)), None)


def _find_entry(value: Any, index: int, *, num_layers: int) -> object:
    if isinstance(value, list | tuple):
        # A list of the layers' own numbers says the same about all of them.
        says_nothing = list(value) == list(range(len(value)))
        return None if says_nothing or not num_layers <= len(value) > index else value[index]
    return value.get(index) if isinstance(value, dict) else None
