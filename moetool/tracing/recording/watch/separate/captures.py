"""Tensors of one width, looked at one after the other while a block runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moetool.simulation.meta.dispatch import DispatchMode
from moetool.tracing.recording.watch.weighted_rows import WeightTrail

# Sums that may be the last: what follows them may look like one too, such as a mean over tokens.
_MOST_CANDIDATES = 8


class Capture(DispatchMode):
    """Shows every tensor of some width that goes into an operation or comes out of one.

    The operations of a block that runs again with the same hidden states are the same, so a tensor
    has the same number in every run.

    Args:
        width: Size of the last dimension of the tensors to look at; of others the number is None.
        look: Takes a tensor and its number.
        trail: Follows weights that multiply rows before experts receive them.
    """

    def __init__(
        self,
        width: int,
        look: Callable[[torch.Tensor, int], None],
        *,
        trail: WeightTrail | None = None,
    ) -> None:
        super().__init__()
        self.trail = trail
        self._width = width
        self._look = look
        self._count = 0
        self._is_paused = False

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look at the inputs of an operation, run it, and look at its outputs."""
        if self._is_paused:
            return self.pass_on(func, args, kwargs)
        self.show(args)
        if self.trail is None:
            output = self.pass_on(func, args, kwargs)
        else:
            output = self.trail.run(func, args, kwargs, lambda: self.pass_on(func, args, kwargs))
        self.show(output)
        return output

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look at nothing meanwhile: what stand-ins compute differs from run to run."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def show(self, values: Any) -> None:
        """Look at each tensor among some values."""
        for value in iter_tensors(values):
            if value.is_floating_point() and value.dim() > 1 and value.shape[-1] == self._width:
                self._look(value, self._count)
                self._count += 1


class SumDetector:
    """Finds the tensors that hold a marked vector for some of their tokens, and marks nowhere else.

    Args:
        least: The least absolute value of a mark.
        num_columns: Marks belong into the first columns.
    """

    def __init__(self, *, least: float, num_columns: int) -> None:
        # By number of tokens.
        self.found: dict[int, list[int]] = defaultdict(list)
        self._least = least
        self._num_columns = num_columns

    def look(self, value: torch.Tensor, number: int) -> None:
        """Note a tensor's number if it may be a sum of marked vectors."""
        rows = value.reshape(-1, value.shape[-1])
        is_marked = (rows.abs() >= self._least) | rows.isnan()
        if bool(is_marked.any()) and not bool(is_marked[:, self._num_columns :].any()):
            numbers = self.found[len(rows)]
            numbers.append(number)
            del numbers[:-_MOST_CANDIDATES]


class Taker:
    """Copies the tensor of some number, or puts another one into its place."""

    def __init__(self, number: int, *, put: torch.Tensor | None = None) -> None:
        self.taken: torch.Tensor | None = None
        self._number = number
        self._put = put

    def look(self, value: torch.Tensor, number: int) -> None:
        """Copy a tensor if it is the one."""
        if number != self._number:
            return
        if self._put is not None and self._put.numel() == value.numel():
            value.copy_(self._put.view(value.shape))
        self.taken = value.detach().reshape(-1, value.shape[-1]).clone()


class InputFinder:
    """Keeps the tensors whose rows experts receive.

    Args:
        given: Hidden states that the block was called with, if any.
    """

    def __init__(self, given: torch.Tensor | None) -> None:
        self.found: list[torch.Tensor] = []
        self._seen: list[torch.Tensor] = [] if given is None else [given]
        self._is_done = False

    def look(self, value: torch.Tensor, _number: int) -> None:
        """Note a tensor that may be dispatched to experts."""
        if not self._is_done and not any(_is_alias(value, seen) for seen in self._seen[-4:]):
            self._seen.append(value)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep copies of the tensors seen so far that hold the rows of an expert's first call."""
        if self._is_done or not rows.numel():
            return
        self._is_done = True
        rows = rows.reshape(-1, rows.shape[-1])
        wanted = hash_rows(rows[rows.ne(0).any(dim=1)])
        for value in reversed(self._seen):
            states = value.detach().reshape(-1, value.shape[-1])
            if states.shape[-1] != rows.shape[-1]:
                continue
            if bool(torch.isin(wanted, hash_rows(states.to(rows))).all()):
                self.found.append(states.clone())
        self._seen.clear()


def iter_tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among values and in their lists, tuples and mappings."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from iter_tensors(value)
    elif isinstance(values, dict):
        yield from iter_tensors(list(values.values()))


def hash_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return a whole number for each row, which equal rows share. # (num_rows,)."""
    generator = torch.Generator().manual_seed(0)
    factors = (
        torch.randint(-(2**62), 2**62, rows.shape[-1:], generator=generator, device="cpu") * 2 + 1
    )
    return (rows.double().contiguous().view(torch.int64) * factors.to(rows.device)).sum(dim=1)


def _is_alias(value: torch.Tensor, other: torch.Tensor) -> bool:
    return value.shape == other.shape and value.data_ptr() == other.data_ptr()
