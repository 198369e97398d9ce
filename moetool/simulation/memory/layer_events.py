"""Records of a layer's births and deaths, from which those of another layer are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.operations.event_log import EventColumns
from moetool.simulation.memory.timeline import NOWHERE


class Workspace(Enum):
    """The kinds of workspace that matrix products keep."""

    CUBLAS = auto()
    CUBLAS_LT = auto()


class Taking(NamedTuple):
    """The place in a layer where the first product runs that needs a workspace.

    Attributes:
        num_events: Events before it.
        origin: The place in the model.
        block: The workspace's block, if this product took it.
    """

    num_events: int
    origin: int
    block: int | None


@dataclass(frozen=True)
class LayerMark:
    """The beginning of a layer, or of a part of one.

    Attributes:
        num_events: Number of events before it.
        num_blocks: Number of blocks before it.
        num_loops: Number of shortened loops before it.
        positions: The position of each block that the layer found among the tensors found.
        needed: The workspaces that the layer needed before this part of it.
    """

    num_events: int
    num_blocks: int
    num_loops: int
    positions: Mapping[int, int]
    needed: Mapping[Workspace, Taking]


@dataclass(frozen=True)
class LayerEvents:
    """The births and deaths in a layer.

    Attributes:
        events: The events; blocks it made are numbered from 0, those it found from -1 downwards.
        num_made: Number of blocks it made.
        left: The blocks of the tensors that it left behind; None for one that isn't followed.
        workspaces: By kind of workspace, where it is taken if no earlier product took it.
        loops: Iterations that are not among the events, with events and blocks counted as above.
    """

    events: EventColumns
    num_made: int
    left: tuple[int | None, ...]
    workspaces: Mapping[Workspace, Taking]
    loops: tuple[Loop, ...] = ()

    @cached_property
    def freed(self) -> frozenset[int]:
        """The blocks among those it found that die in it."""
        return frozenset(block for block in self.events.blocks if block < 0)

    @cached_property
    def sizes_left(self) -> Mapping[int, int]:
        """The sizes of the blocks that it made and left behind."""
        left = set(self.left)
        births = zip(self.events.blocks, self.events.num_bytes, strict=True)
        return {block: num_bytes for block, num_bytes in births if num_bytes >= 0 and block in left}

    def place(
        self, *, first: int, found: Mapping[int, int], moved: Mapping[int, int]
    ) -> EventColumns:
        """Return the events of another layer that does the same.

        Args:
            first: The number of the first block that the layer makes.
            found: The blocks that it finds, by their numbers here.
            moved: Places in it, by those of this layer.
        """
        blocks = [block + first for block in self.events.blocks]
        for index, block in self._events_about_found:
            blocks[index] = found[block]
        origins = list(map(moved.__getitem__, self._birthplaces))
        return EventColumns(blocks, self.events.num_bytes, origins)

    @cached_property
    def _events_about_found(self) -> list[tuple[int, int]]:
        """The index and the block of each event about a block that it found."""
        return [(index, block) for index, block in enumerate(self.events.blocks) if block < 0]

    @cached_property
    def _birthplaces(self) -> list[int]:
        births = zip(self.events.num_bytes, self.events.origins, strict=True)
        return [NOWHERE if num_bytes < 0 else origin for num_bytes, origin in births]
