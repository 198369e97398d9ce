"""Templates of values that a layer left behind, from which stand-ins are made without data."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moetool.simulation.repeated.fingerprints import is_transparent


@dataclass(frozen=True)
class _Given:
    """Stands for the value at a position among those that the layer was given."""

    position: int


@dataclass(frozen=True)
class _NewTensor:
    """Stands for a tensor that the layer made.

    Attributes:
        number: Identifies the tensor: one that the layer left in two places is made once.
        strides: Its strides, in elements.
    """

    number: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class _Instance:
    """Stands for an object that keeps its state in attributes, such as a slot of a cache."""

    example: Any


class TemplateMaker:
    """Makes templates of values. They hold none of the tensors, so those can be freed.

    Args:
        given: The values that the layer was given. In a template they stand for the values that
            another layer is given.

    Attributes:
        made: The layer's own tensors that templates were made of, by their number.
    """

    def __init__(self, given: Sequence[object]) -> None:
        self._kept_alive = given
        self._position_of = {id(value): position for position, value in enumerate(given)}
        self._number_of: dict[int, int] = {}
        self.made: list[torch.Tensor] = []

    def can_make(self, value: Any) -> bool:
        """Return whether a value and its stand-ins would have no mutable part in common."""
        return all(
            id(leaf) in self._position_of
            or (is_transparent(leaf) and not isinstance(leaf, tuple | list | dict | UserDict))
            for leaf in find_leaves(value)
        )

    def make(self, value: Any) -> Any:
        """Return the template of a tensor or a container; anything else is its own template."""
        if id(value) in self._position_of:
            return _Given(self._position_of[id(value)])
        if isinstance(value, torch.Tensor):
            number = self._number_of.setdefault(id(value), len(self.made))
            if number == len(self.made):
                self.made.append(value)
            return _NewTensor(number, value.shape, value.stride(), value.dtype, value.device)
        return _map_container(self.make, value)

    def make_of_instance(self, value: Any) -> Any:
        """Return the template of an object by its attributes; of tensors and containers as `make`."""
        if isinstance(value, torch.Tensor | tuple | list | dict):
            return self.make(value)
        example = copy.copy(value)
        vars(example).update(self.make(vars(value)))
        return _Instance(example)


class StandIns:
    """Makes stand-ins for the values that a layer would have left behind.

    Attributes:
        made: The tensors made so far, by the number of the layer's own.

    Args:
        given: The values that the layer is given.
    """

    def __init__(self, given: Sequence[object]) -> None:
        self._given = given
        self.made: dict[int, torch.Tensor] = {}

    def make(self, template: Any) -> Any:
        """Return the value that a template stands for."""
        if isinstance(template, _Given):
            return self._given[template.position]
        if isinstance(template, _NewTensor):
            if template.number not in self.made:
                self.made[template.number] = torch.empty_strided(
                    template.shape, template.strides, dtype=template.dtype, device=template.device
                )
            return self.made[template.number]
        if isinstance(template, _Instance):
            instance = copy.copy(template.example)
            vars(instance).update(self.make(vars(template.example)))
            return instance
        return _map_container(self.make, template)


def find_leaves(value: Any) -> Iterator[object]:
    """Yield the items of containers, in order, down to whatever is not a container."""
    if type(value) in (tuple, list):
        for item in value:
            yield from find_leaves(item)
    elif type(value) is dict:
        for item in value.values():
            yield from find_leaves(item)
    elif isinstance(value, UserDict):
        yield from find_leaves(value.data)
    else:
        yield value


def _map_container(function: Any, value: Any) -> Any:
    """Return a tuple, list or dict with a function applied to its items; else the value itself."""
    if type(value) in (tuple, list):
        return type(value)(function(item) for item in value)
    if type(value) is dict:
        return {name: function(item) for name, item in value.items()}
    return value
