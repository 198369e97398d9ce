"""Iterations of a loop that did not run."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Loop:
    """Iterations of a loop that are not among the events, because they are like the one before them.

    Each makes new blocks in place of those that the iteration before made.

    Attributes:
        end_event: Number of events until the end of the iteration before them.
        num_events: Number of events of an iteration.
        first_block: The first block that the iteration before them made.
        num_blocks: Number of blocks that an iteration makes.
        num_left_out: Number of iterations that are not among the events.
    """

    end_event: int
    num_events: int
    first_block: int
    num_blocks: int
    num_left_out: int

    def moved(self, end_event: int, num_blocks: int) -> Loop:
        """Return the same iterations after other events, in blocks with greater numbers."""
        first_block = self.first_block + num_blocks
        return replace(self, end_event=end_event, first_block=first_block)
