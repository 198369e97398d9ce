"""Molds of what a layer left behind, from which the same is made again without data."""

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
    """Stands for what the layer was given at a position."""

    position: int


@dataclass(frozen=True)
class _NewTensor:
    """Stands for a tensor that the layer made.

    Attributes:
        number: Tells the layer's tensors apart: one that it left in two places is made once.
        shape: Its shape.
        strides: Its strides, in elements.
        dtype: Its dtype.
        device: Its device.
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


class MoldMaker:
    """Takes molds of values: they hold none of the tensors, so that those can be freed.

    Args:
        given: What the layer was given. In a mold it stands for what another layer is given.

    Attributes:
        made: The layer's own tensors that molds were taken of, by their number.
    """

    def __init__(self, given: Sequence[object]) -> None:
        self._kept_alive = given
        self._position_of = {id(value): position for position, value in enumerate(given)}
        self._number_of: dict[int, int] = {}
        self.made: list[torch.Tensor] = []

    def can_take(self, value: Any) -> bool:
        """Return whether what a mold stands for would have no part in the value it is taken of."""
        return all(
            id(leaf) in self._position_of
            or (is_transparent(leaf) and not isinstance(leaf, tuple | list | dict | UserDict))
            for leaf in find_leaves(value)
        )

    def take(self, value: Any) -> Any:
        """Return the mold of a tensor or a container; anything else is its own mold."""
        if id(value) in self._position_of:
            return _Given(self._position_of[id(value)])
        if isinstance(value, torch.Tensor):
            number = self._number_of.setdefault(id(value), len(self.made))
            if number == len(self.made):
                self.made.append(value)
            return _NewTensor(number, value.shape, value.stride(), value.dtype, value.device)
        return _map_container(self.take, value)

    def take_instance(self, value: Any) -> Any:
        """Return the mold of an object by its attributes; of tensors and containers as in `take`."""
        if isinstance(value, torch.Tensor | tuple | list | dict):
            return self.take(value)
        example = copy.copy(value)
        vars(example).update(self.take(vars(value)))
        return _Instance(example)


class Caster:
    """Makes from molds what a layer would have left behind.

    Attributes:
        made: The tensors made so far, by the number of the layer's own.

    Args:
        given: What the layer is given.
    """

    def __init__(self, given: Sequence[object]) -> None:
        self._given = given
        self.made: dict[int, torch.Tensor] = {}

    def cast(self, mold: Any) -> Any:
        """Return what a mold stands for."""
        if isinstance(mold, _Given):
            return self._given[mold.position]
        if isinstance(mold, _NewTensor):
            if mold.number not in self.made:
                self.made[mold.number] = torch.empty_strided(
                    mold.shape, mold.strides, dtype=mold.dtype, device=mold.device
                )
            return self.made[mold.number]
        if isinstance(mold, _Instance):
            instance = copy.copy(mold.example)
            vars(instance).update(self.cast(vars(mold.example)))
            return instance
        return _map_container(self.cast, mold)


def find_leaves(value: Any) -> Iterator[object]:
    """Yield what containers hold, in order, down to whatever is no container."""
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
