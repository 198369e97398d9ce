"""Records of a layer's births and deaths, from which those of another layer are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from moetool.simulation.loops.loop import Loop
from moetool.simulation.memory.timeline import Event


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
    """The beginning of a layer.

    Attributes:
        num_events: Number of events before it.
        num_blocks: Number of blocks before it.
        num_loops: Number of shortened loops before it.
        positions: The position of each block that the layer found among the tensors found.
    """

    num_events: int
    num_blocks: int
    num_loops: int
    positions: Mapping[int, int]


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
