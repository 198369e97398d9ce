"""The observer of loops: it records the work of iterations, including those that don't run."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

import torch

from moetool.simulation.loops.loop import Loop


class IterationMark(NamedTuple):
    """The beginning of an iteration.

    Attributes:
        num_events: Number of events before it.
        num_blocks: Number of blocks before it.
        rest: Whatever else must be equal for two iterations to do the same.
    """

    num_events: int
    num_blocks: int
    rest: Hashable


class LoopObserver(Protocol):
    """Records the work of iterations, including those that don't run."""

    def mark_iteration(self) -> IterationMark:
        """Return a mark of the beginning of an iteration."""

    def find_block(self, tensor: torch.Tensor) -> int | None:
        """Return the block that a tensor is in; None for those not followed."""

    def allow_blocks(self, num_further: int) -> None:
        """Raise an error if a layer may not make that number of further blocks."""

    def leave_out(self, loop: Loop) -> None:
        """Record iterations that don't run, all of whose blocks die in them or in the next one."""

    def write_out(self, loop: Loop) -> None:
        """Record iterations that don't run one by one. What lives now is what the last of them made."""

    def follow_like(self, made: torch.Tensor, tensor: torch.Tensor, num_blocks: int) -> None:
        """Follow a tensor in a block that many before another's."""
