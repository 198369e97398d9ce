"""Hidden states that a block multiplies by routing weights before they go into experts.

Llama 4 and torchtitan's `score_before_experts` do so. What an expert receives then differs from its
token's hidden state by one factor, which is the weight. Dropout and jitter multiply by random numbers,
which are not part of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from moetool.tracing.recording.watch.operations.labels import (
    has_one_number,
    is_move,
    move,
    name_of,
    storage_of,
    tensors_in,
)

# Roundings by which a row may differ from the product.
_ROUNDINGS = 2
WEIGHTED_TWICE = "weights multiply what goes into its experts and what comes out of them"


class WeightedRows(NamedTuple):
    """Rows that were multiplied by weights, or by random numbers.

    Attributes:
        rows: What they were before. # (..., width)
        factors: The weights, the same all along a row. # (..., width)
        noise: The random numbers. # (..., width)
    """

    rows: torch.Tensor
    factors: torch.Tensor
    noise: torch.Tensor


class WeightTrail:
    """Follows routing scores, and the rows that are multiplied by them, while a block runs.

    Scores are tensors with a number for each expert, and all that is computed from them.

    Args:
        num_experts: Number of experts.
        width: Of the rows that experts receive. Tensors of this width are rows and not scores, so
            nothing is followed where it is the number of experts.
    """

    def __init__(self, num_experts: int, width: int) -> None:
        self._num_experts = num_experts
        self._width = width
        self._scores: set[int] = set()
        self._noise: set[int] = set()
        self._found: dict[int, WeightedRows] = {}
        # Tensors whose identities are in use.
        self._kept: list[Any] = []

    def add_scores(self, values: Iterable[torch.Tensor]) -> None:
        """Take values that come from outside of what is followed, such as a router's, as scores.

        These are numbers for every expert, and numbers that come with ids.
        """
        values = list(values)
        with_ids = {value.shape for value in values if value.dtype in (torch.int64, torch.int32)}
        for value in values:
            is_score = value.shape[-1:] == (self._num_experts,) != (self._width,)
            if value.is_floating_point() and (is_score or value.shape in with_ids):
                self._note_scores(value)

    def find(self, rows: torch.Tensor) -> WeightedRows | None:
        """Return the weights that rows were multiplied by; None if they were not."""
        return self._found.get(id(rows))

    def list_scores(self, num_tokens: int) -> torch.Tensor:
        """Return the numbers of each token among the scores. # (num_tokens, num_scores)."""
        most = num_tokens * self._num_experts
        found = [
            value.detach().reshape(num_tokens, -1).double()
            for value in self._kept
            if self.is_scores(value)
            and num_tokens in (value.numel(), *value.shape[:1], value.shape[:-1].numel())
            if 0 < value.numel() <= most and value.numel() % num_tokens == 0
        ]
        return torch.cat(found, dim=1) if found else torch.zeros(num_tokens, 0).double()

    def run(self, operation: Any, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """Run an operation and follow what it does.

        Args:
            operation: An overload of torch's dispatcher.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            run: A function that runs it and returns its result.
        """
        given = tensors_in(args, kwargs)
        rows, factor = self._split(operation, given)
        before = None
        if rows is not None:
            one = torch.ones((), dtype=rows.dtype, device=rows.device)
            now = rows.clone() if _is_written(operation) else rows
            before = self._found.get(id(rows), WeightedRows(now.detach(), one, one))
        result = run()
        if factor is not None and before is not None:
            self._weigh(operation, before, factor, result)
        elif any(id(value) in self._found for value in given):
            self._move(operation, args, kwargs, result)
        else:
            self._follow_numbers(operation, given, result)
        return result

    def is_scores(self, value: torch.Tensor) -> bool:
        """Return whether a tensor holds scores, or numbers that were computed from them."""
        is_known = id(value) not in self._found and storage_of(value) in self._scores
        return is_known and value.is_floating_point()

    def _is_noise(self, value: torch.Tensor) -> bool:
        return storage_of(value) in self._noise and not self.is_scores(value)

    def _split(
        self, operation: Any, given: list[torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the rows, and the scores or random numbers, that an operation multiplies."""
        name = name_of(operation)
        if name not in ("mul", "div") or len(given) != 2:
            return None, None
        factors = [value for value in given if self.is_scores(value) or self._is_noise(value)]
        rows = [value for value in given if not any(value is factor for factor in factors)]
        if len(rows) != 1 or rows[0].shape[-1:] != (self._width,):
            return None, None
        if name == "div" and factors[0] is given[0]:
            return None, None
        if self.is_scores(factors[0]) and not has_one_number(factors[0], rows[0].shape):
            return None, None
        return rows[0], factors[0]

    def _weigh(
        self, operation: Any, before: WeightedRows, factor: torch.Tensor, result: torch.Tensor
    ) -> None:
        rows, factors, noise = (value.expand(result.shape) for value in before)
        numbers = factor.detach().expand(result.shape)
        numbers = numbers.reciprocal() if name_of(operation) == "div" else numbers.clone()
        if self.is_scores(factor):
            factors = factors * numbers
        else:
            noise = noise * numbers
        self._note(result, WeightedRows(rows, factors, noise))

    def _move(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Follow rows through operations that compute nothing; after others they are not rows."""
        if not is_move(operation):
            return
        parts = []
        for part in range(3):
            own = {key: found[part] for key, found in self._found.items()}
            moved = move(operation, args, kwargs, result, own)
            if moved is None:
                return
            parts.append(tensors_in(moved))
        for value, *found in zip(tensors_in(result), *parts, strict=True):
            self._note(value, WeightedRows(*found))

    def _note(self, value: torch.Tensor, found: WeightedRows) -> None:
        self._found[id(value)] = found
        self._kept.append(value)

    def _follow_numbers(self, operation: Any, given: list[torch.Tensor], result: Any) -> None:
        """Follow scores and random numbers through an operation."""
        is_made_of_scores = any(map(self.is_scores, given))
        is_drawn = torch.Tag.nondeterministic_seeded in operation.tags
        is_noise = is_drawn or (bool(given) and all(map(self._is_noise, given)))
        for value in tensors_in(result):
            is_score = value.shape[-1:] == (self._num_experts,) != (self._width,)
            if value.is_floating_point() and (is_made_of_scores or is_score):
                self._note_scores(value)
            elif is_noise:
                self._noise.add(storage_of(value))
                self._kept.append(value)

    def _note_scores(self, value: torch.Tensor) -> None:
        self._scores.add(storage_of(value))
        self._kept.append(value)


def _is_written(operation: Any) -> bool:
    alias = operation._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def is_product(weighted: WeightedRows, received: torch.Tensor) -> bool:
    """Return whether rows are what weights make of the rows before, up to rounding.

    Args:
        weighted: The rows before, and the weights.
        received: # (..., width)
    """
    rows, factors, noise = (value.double() for value in weighted)
    expected = rows * factors * noise
    rounding = _ROUNDINGS * torch.finfo(received.dtype).eps
    error = (received.reshape(expected.shape).double() - expected).abs()
    return bool((error <= rounding * expected.abs()).all())


def read_weighted(
    received: Mapping[int, list[torch.Tensor]],
    weighted: Mapping[int, list[WeightedRows | None]],
) -> tuple[dict[int, list[torch.Tensor]], dict[int, torch.Tensor]]:
    """Return the rows of experts as they were before weights multiplied them, and the weights.

    Args:
        received: By expert, the rows of each of its calls. # each (..., width)
        weighted: What is known about each of them.

    Returns:
        By expert, the rows of each of its calls, and the weight of each row, for those experts whose
        rows were multiplied by other weights than 1.
    """
    rows, weights = dict(received), {}
    for expert, calls in received.items():
        found = [
            each
            for each, of_call in zip(weighted[expert], calls, strict=True)
            if each is not None and is_product(each, of_call)
        ]
        if len(found) == len(calls) > 0:
            rows[expert] = [each.rows for each in found]
            factors = torch.cat([each.factors[..., 0].flatten() for each in found])
            if bool((factors != 1).any()):
                weights[expert] = factors
    return rows, weights
