"""Records of what a layer did to memory, from which the same is recorded for another layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from moetool.simulation.memory.timeline import Event


class Workspace(Enum):
    """The kinds of workspace that products of matrices keep."""

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
    """Where a layer began.

    Attributes:
        num_events: Events until then.
        num_blocks: Blocks until then.
        places: By block that the layer found, its place among the tensors found.
    """

    num_events: int
    num_blocks: int
    places: Mapping[int, int]


@dataclass(frozen=True)
class LayerEvents:
    """What a layer did.

    Attributes:
        events: Its events; blocks it made are numbered from 0, those it found from -1 downwards.
        num_made: Number of blocks it made.
        left: The blocks of the tensors that it left behind; None for one that isn't followed.
        workspaces: By kind of workspace, where it is taken if no earlier product took it.
    """

    events: tuple[Event, ...]
    num_made: int
    left: tuple[int | None, ...]
    workspaces: Mapping[Workspace, Taking]
