"""Numbers by which rows are multiplied between the products of an expert (Megatron)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from moetool.tracing.recording.watch.operations.labels import (
    has_one_number,
    is_move,
    move,
    name_of,
    storage_of,
    tensors_in,
)

_MULTIPLICATIONS = ("mul", "div")
# A factor of a row is still one after these; after any other operation it is not.
_KEEPS_FACTORS = frozenset({"_to_copy", "mul", "div"})
_UNKNOWN = torch.tensor(torch.nan)


class FactorTrail:
    """Follows what rows are multiplied by on their way from an expert's first product.

    Args:
        is_factor: Whether a tensor may be a factor: it is made of hidden states, but not by an expert.
    """

    def __init__(self, is_factor: Callable[[torch.Tensor], bool]) -> None:
        self._is_factor = is_factor
        self._factors: dict[int, torch.Tensor] = {}
        self._weighed: set[int] = set()

    def follow(
        self, operation: Any, args: Any, kwargs: Any, result: Any, given: list[torch.Tensor]
    ) -> None:
        """Follow one operation, whose tensors the caller keeps.

        Args:
            operation: An overload of torch's dispatcher.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            result: What it returned.
            given: The tensors among its arguments.
        """
        own = {id(value): factors for value in given for factors in self.find(value)}
        if is_move(operation):
            moved = move(operation, args, kwargs, result, own) if own else ()
            found = [_UNKNOWN] * len(tensors_in(result)) if moved is None else tensors_in(moved)
        elif torch.Tag.pointwise in operation.tags and isinstance(result, torch.Tensor):
            factors = self._multiply(operation, given, result, own)
            found = [] if factors is None else [factors]
        else:
            is_weighed = own or any(map(self._is_factor, given))
            found = [_UNKNOWN] * len(tensors_in(result)) if is_weighed else []
        for value, factors in zip(tensors_in(result) if found else (), found, strict=True):
            self._note(value, factors)

    def find(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the factors of a tensor if it has any: unknown ones if it was changed in place."""
        if id(value) in self._factors:
            yield self._factors[id(value)]
        elif storage_of(value) in self._weighed:
            yield _UNKNOWN.to(value.device).expand(value.shape)

    def forget(self, value: torch.Tensor) -> None:
        """Take the factors of a tensor as unknown from here on."""
        self._note(value, _UNKNOWN)

    def _note(self, value: torch.Tensor, factors: torch.Tensor) -> None:
        self._factors[id(value)] = factors.to(value.device).expand(value.shape)
        self._weighed.add(storage_of(value))

    def _multiply(
        self,
        operation: Any,
        given: list[torch.Tensor],
        result: torch.Tensor,
        own: Mapping[int, torch.Tensor],
    ) -> torch.Tensor | None:
        """Return the factors of the result of an operation on single numbers."""
        name, found = name_of(operation), None
        for value in given:
            factors = own.get(id(value))
            if factors is None and name != "add" and self._is_factor(value):
                is_factor = name in _MULTIPLICATIONS and has_one_number(value, result.shape)
                factors = value.detach() if is_factor else _UNKNOWN.to(value.device)
                factors = factors.reciprocal() if name == "div" else factors
            if factors is not None:
                found = factors if found is None else found * factors
        if found is None or name in _KEEPS_FACTORS:
            return found
        return _UNKNOWN
