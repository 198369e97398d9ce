"""The run on each of several GPUs, as reports show it."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.memory.answers.figures import MemoryFigures, Method
from moetool.plain import show_fields


@dataclass(frozen=True)
class RankMemory:
    """The memory of one of several GPUs.

    Attributes:
        rank: Its number, from 0.
        batch_size: Sequences that it runs.
        figures: The memory of its part of the run.
        activation_bytes: Everything at the peak that is neither weights, cache nor workspace.
        workspace_bytes: The workspaces that matrix products keep, at the peak.
        communication_bytes: The most that results of collectives hold at once; they are part of the
            activations.
        fits: Whether its part of the run completes in the GPU's memory.
        headroom_bytes: Memory left; negative if it doesn't fit.
    """

    rank: int
    batch_size: int
    figures: MemoryFigures
    activation_bytes: int
    workspace_bytes: int
    communication_bytes: int
    fits: bool
    headroom_bytes: int

    __repr__ = show_fields


@dataclass(frozen=True)
class Layout:
    """A run on several GPUs that share the model in one way.

    Attributes:
        way: A value of `ParallelWay`.
        gpu: The GPU's id.
        num_gpus: GPUs in all.
        num_nodes: Machines.
        method: The origin of the figures.
        ranks: The memory of each GPU, in order; empty if it is unknown.
        fits: Whether the run fits on every GPU; None if unknown.
        worst_rank: The GPU with the least memory left; None if unknown.
        fewest_gpus: The fewest GPUs of this kind on which this way fits; None if none were found, or
            if that is unknown.
        library_bytes: Memory of the communication library outside torch's allocator on each GPU; None
            if unknown, 0 if the way needs none.
        notes: What is assumed, left out or unknown, one sentence each.
    """

    way: str
    gpu: str
    num_gpus: int
    num_nodes: int
    method: Method
    ranks: tuple[RankMemory, ...] = ()
    fits: bool | None = None
    worst_rank: int | None = None
    fewest_gpus: int | None = None
    library_bytes: int | None = None
    notes: tuple[str, ...] = ()

    __repr__ = show_fields
