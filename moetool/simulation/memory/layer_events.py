"""Records of a layer's births and deaths, from which those of another layer are recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property, partial
from typing import NamedTuple

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.timeline import Event

# `Event._make` does the same in Python, which takes three times as long.
_make_event = partial(tuple.__new__, Event)


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

    events: tuple[Event, ...]
    num_made: int
    left: tuple[int | None, ...]
    workspaces: Mapping[Workspace, Taking]
    loops: tuple[Loop, ...] = ()

    @cached_property
    def birthplaces(self) -> tuple[int, ...]:
        """The places where its blocks are born, each once, in order."""
        return tuple(dict.fromkeys(each.origin for each in self.events if each.num_bytes >= 0))

    @cached_property
    def freed(self) -> frozenset[int]:
        """The blocks among those it found that die in it."""
        return frozenset(event.block for event in self.events if event.block < 0)

    @cached_property
    def sizes_left(self) -> Mapping[int, int]:
        """The sizes of the blocks that it made and left behind."""
        left = set(self.left)
        return {
            block: num_bytes
            for block, num_bytes, _ in self.events
            if num_bytes >= 0 and block in left
        }

    def place(
        self,
        start: int,
        end: int,
        *,
        first: int,
        found: Mapping[int, int],
        moved: Mapping[int, int],
    ) -> Iterator[Event]:
        """Return some of the events of another layer that does the same.

        Args:
            start: Number of events before them.
            end: Number of events until their end.
            first: The number of the first block that the layer makes.
            found: The blocks that it finds, by their numbers here.
            moved: Its birthplaces, by those of this layer.
        """
        blocks, sizes, origins = (column[start:end] for column in self._columns)
        numbers = [block + first if block >= 0 else found[block] for block in blocks]
        places = [
            0 if num_bytes < 0 else moved[origin]
            for num_bytes, origin in zip(sizes, origins, strict=True)
        ]
        return map(_make_event, zip(numbers, sizes, places, strict=True))

    @cached_property
    def _columns(self) -> tuple[tuple[int, ...], ...]:
        return tuple(zip(*self.events, strict=True)) or ((), (), ())
