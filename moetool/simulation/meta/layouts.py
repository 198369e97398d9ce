"""The layouts of results on the meta device, found once for each kind of call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from moetool.simulation.meta.dispatch import find_tensors

# A few MB. A run takes a few hundred.
_MOST_KEPT = 10_000
_META = torch.device("meta")
_PLAIN = (
    *(type(None), bool, int, float, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


class Layout(NamedTuple):
    """The layout of a tensor that begins where its memory does."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """The memory from the first element to the last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return (1 + sum((size - 1) * stride for size, stride in steps)) * self.dtype.itemsize

    def make(self) -> torch.Tensor:
        """Return a tensor with this layout."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=_META)


class Layouts:
    """Makes results of operations on the meta device without running those that ran before.

    What an operation returns there depends only on the layouts of tensors and on other arguments.
    torch works most of it out in Python, which takes longer than all else in a simulation. Only
    operations that return new tensors are remembered.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[Layout, ...]] = {}

    def run(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        pass_on: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any],
    ) -> Any:
        """Return an operation's result.

        Args:
            func: The operation: an overload of torch's dispatcher.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            pass_on: Runs the operation.
        """
        key = _describe_call(func, args, kwargs)
        if key is None:
            return pass_on(func, args, kwargs)
        # Asked once: other threads may clear what was found.
        found = self._found.get(key)
        if found is not None:
            made = tuple(layout.make() for layout in found)
            return made[0] if len(made) == 1 else made
        result = pass_on(func, args, kwargs)
        layouts = _find_layouts(result, given=find_tensors((*args, *kwargs.values())))
        if layouts is not None:
            if len(self._found) >= _MOST_KEPT:
                self._found.clear()
            self._found[key] = layouts
        return result


@functools.cache
def _makes_new_tensors(func: Any) -> bool:
    """Return whether an operation of torch's own only returns new tensors, and writes to none."""
    schema = func._schema
    return bool(
        func.namespace == "aten"
        and not schema.is_mutable
        and all(returned.alias_info is None for returned in schema.returns)
    )


def _describe_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable | None:
    """Return all that a call's result depends on; None if the call is not remembered."""
    if not _makes_new_tensors(func):
        return None
    given = _describe((*args, *kwargs.values()))
    # A product of integers with a fraction has the default dtype.
    return None if given is None else (func, given, tuple(kwargs), torch.get_default_dtype())


def _describe(value: object) -> Hashable | None:
    if isinstance(value, torch.Tensor):
        return _describe_tensor(value)
    if isinstance(value, _PLAIN):
        # Numbers that are equal may differ in type, and so may the results.
        return (type(value), value)
    if isinstance(value, tuple | list):
        items = tuple(map(_describe, value))
        return None if None in items else items
    return None


def _describe_tensor(tensor: torch.Tensor) -> Hashable | None:
    if not is_plain(tensor):
        return None
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset())


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor on the meta device has nothing but shape, strides, dtype and offset."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.is_meta
        and tensor.layout is torch.strided
        and not tensor.is_complex()
    )


def read_layout(tensor: torch.Tensor) -> Layout:
    """Return the layout of a tensor."""
    return Layout(tensor.shape, tensor.stride(), tensor.dtype)


def _find_layouts(result: Any, *, given: Sequence[torch.Tensor]) -> tuple[Layout, ...] | None:
    """Return the layouts of results; None if any of them is not a new tensor that fills its memory."""
    results = result if type(result) is tuple else (result,)
    addresses = {tensor.untyped_storage()._cdata for tensor in given}
    layouts = []
    for tensor in results:
        if type(tensor) is not torch.Tensor or not is_plain(tensor):
            return None
        layout = read_layout(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata in addresses or storage.nbytes() != layout.num_bytes:
            return None
        addresses.add(storage._cdata)
        layouts.append(layout)
    return tuple(layouts)
