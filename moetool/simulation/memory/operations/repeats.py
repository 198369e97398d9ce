"""Operations that do the same as an earlier one: recorded without running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from moetool.simulation.memory.operations.ledger import Ledger
from moetool.simulation.memory.operations.outcomes import (
    Given,
    New,
    OperationEvent,
    OperationOutcome,
    make_outcome,
)
from moetool.simulation.memory.operations.places import Places
from moetool.simulation.memory.operations.workspaces import Workspaces


class OperationMark(NamedTuple):
    """The beginning of an operation.

    Attributes:
        num_events: Number of events before it.
        num_blocks: Number of blocks before it.
        num_needs: Number of products before it that needed a workspace.
        num_workspaces: Number of workspaces taken before it.
    """

    num_events: int
    num_blocks: int
    num_needs: int
    num_workspaces: int


class OperationRepeats:
    """Finds the outcomes of operations that run, and records them for others.

    Args:
        ledger: Where births and deaths are written down.
        places: Where the run is in the model.
        workspaces: The workspaces of its products.
    """

    def __init__(self, ledger: Ledger, places: Places, workspaces: Workspaces) -> None:
        self._ledger = ledger
        self._places = places
        self._workspaces = workspaces

    def begin(self) -> OperationMark:
        """Return a mark of the beginning of an operation."""
        ledger, workspaces = self._ledger, self._workspaces
        return OperationMark(
            *(len(ledger.events), ledger.num_blocks),
            *(len(workspaces.needs), len(workspaces.taken)),
        )

    def end(
        self, mark: OperationMark, given: Sequence[torch.Tensor], result: Any
    ) -> OperationOutcome | None:
        """Return the outcome of an operation since a mark; None if it can't stand for another's.

        Args:
            mark: The operation's beginning.
            given: The tensors that it was given.
            result: A tensor, or a tuple or list of them.
        """
        # The first product of a run takes memory that later ones find.
        if len(self._workspaces.taken) != mark.num_workspaces:
            return None
        first = mark.num_blocks
        since = self._ledger.events.cut(mark.num_events)
        events = [
            OperationEvent(
                block - first,
                num_bytes,
                self._places.find_operation(origin) if num_bytes >= 0 else "",
            )
            for block, num_bytes, origin in zip(*since, strict=True)
        ]
        needs = self._workspaces.needs[mark.num_needs :]

        def number_block(tensor: torch.Tensor) -> int:
            block = self._ledger.find_block(tensor)
            return -1 if block is None else block - first

        return make_outcome(
            events,
            [need._replace(num_events=need.num_events - mark.num_events) for need in needs],
            num_made=self._ledger.num_blocks - first,
            given=given,
            result=result,
            number_block=number_block,
        )

    def can_repeat(self, done: OperationOutcome, given: Sequence[torch.Tensor]) -> bool:
        """Return whether an operation has the outcome of an earlier one here as well."""
        return self._workspaces.are_taken(done.needs) and all(
            self._ledger.is_followed(given[position]) for position in done.shared
        )

    def repeat(self, done: OperationOutcome, given: Sequence[torch.Tensor]) -> Any:
        """Return results like those of an earlier operation, and record its memory."""
        ledger, places = self._ledger, self._places
        first, num_events = ledger.number_blocks(done.num_made), len(ledger.events)
        for block, num_bytes, operation in done.events:
            if num_bytes >= 0:
                ledger.bear(num_bytes, places.number(operation), block=block + first)
            else:
                ledger.events.add(block + first, -1, 0)
        # Places are numbered in the order of births.
        for need in done.needs:
            moved = need._replace(num_events=num_events + need.num_events)
            self._workspaces.need_again(moved, places.number(need.operation))
        results: list[torch.Tensor] = []
        for made in done.results:
            if isinstance(made, New):
                tensor = made.layout.make()
                ledger.follow(tensor, made.block + first)
            elif isinstance(made, Given):
                tensor = given[made.position]
            else:
                tensor = given[made.position].as_strided(made.shape, made.strides, made.offset)
            results.append(tensor)
        return results[0] if done.container is None else done.container(results)
