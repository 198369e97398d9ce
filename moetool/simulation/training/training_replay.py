"""Replay steps of training through torch's allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.timeline import Origin
from moetool.simulation.training.steps import TrainingTimeline


class TrainingPhase(StrEnum):
    """The phases of a step of training."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class TrainingMoment:
    """Everything that is allocated at a moment of a step, in bytes.

    Attributes:
        weights_bytes: Parameters and buffers.
        gradient_bytes: Gradients of parameters.
        state_bytes: The optimizer's states.
        activation_bytes: Everything else that comes and goes.
        workspace_bytes: Memory that libraries keep for matrix products.
    """

    weights_bytes: int
    gradient_bytes: int
    state_bytes: int
    activation_bytes: int
    workspace_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """The sum, which `torch.cuda.memory_allocated` would show."""
        return (
            self.weights_bytes
            + self.gradient_bytes
            + self.state_bytes
            + self.activation_bytes
            + self.workspace_bytes
        )


@dataclass(frozen=True)
class TrainingProfile:
    """The memory of a step in which the optimizer's states exist.

    Attributes:
        peaks: The moment of each phase at which the most is allocated, and the operation's place.
        after_forward: The moment at which the forward pass has ended.
        after_backward: The moment at which the backward pass has ended.
        peak_reserved_bytes: The most that the allocator has reserved since the first step.
    """

    peaks: dict[TrainingPhase, tuple[TrainingMoment, Origin]]
    after_forward: TrainingMoment
    after_backward: TrainingMoment
    peak_reserved_bytes: int

    @property
    def peak_allocated_bytes(self) -> int:
        """The most that is allocated in the step."""
        return max(moment.allocated_bytes for moment, _ in self.peaks.values())


def replay_training(
    timeline: TrainingTimeline,
    *,
    weight_bytes: Sequence[int],
    capacity_bytes: int | None = None,
) -> TrainingProfile:
    """Return the memory of the last step on a GPU that holds nothing else.

    Args:
        timeline: The steps.
        weight_bytes: Sizes of the model's storages.
        capacity_bytes: Memory of the GPU that torch's allocator may reserve; None for no limit.

    Raises:
        DeviceFullError: A step doesn't fit within the limit.
    """
    replay = _Replay(timeline, weight_bytes, capacity_bytes)
    for step in timeline.steps[:-1]:
        replay.run(step.end)
    step = timeline.steps[-1]
    replay.run(step.start)
    forward = replay.run(step.forward_end)
    after_forward = replay.describe()
    backward = replay.run(step.backward_end)
    after_backward = replay.describe()
    optimizer = replay.run(step.end)
    return TrainingProfile(
        peaks=dict(zip(TrainingPhase, (forward, backward, optimizer), strict=True)),
        after_forward=after_forward,
        after_backward=after_backward,
        peak_reserved_bytes=replay.allocator.peak_reserved_bytes,
    )


class _Replay:
    """Replays a timeline from where it stopped last."""

    def __init__(
        self, timeline: TrainingTimeline, weight_bytes: Sequence[int], capacity_bytes: int | None
    ) -> None:
        self.allocator = allocate_weights(weight_bytes, capacity_bytes=capacity_bytes)
        self._weights_bytes = self.allocator.allocated_bytes
        self._timeline = timeline
        self._handles: dict[int, int] = {}
        self._position = 0
        # Bytes of gradients, states and workspaces.
        self._kinds = (timeline.gradient_blocks, timeline.state_blocks, timeline.workspace_blocks)
        self._held = [0, 0, 0]

    def describe(self) -> TrainingMoment:
        """Return what is allocated now."""
        return self._make_moment(self.allocator.allocated_bytes, self._held)

    def run(self, end: int) -> tuple[TrainingMoment, Origin]:
        """Replay up to an event, and return the moment on the way at which the most is allocated."""
        allocator, handles = self.allocator, self._handles
        most, held, at = allocator.allocated_bytes, tuple(self._held), Origin("", "", "")
        for block, num_bytes, origin in self._timeline.events[self._position : end]:
            if num_bytes < 0:
                handle = handles.pop(block)
                self._count(block, -allocator.size_of(handle))
                allocator.free(handle)
                continue
            handle = handles[block] = allocator.allocate(num_bytes)
            self._count(block, allocator.size_of(handle))
            if allocator.allocated_bytes > most:
                most, held = allocator.allocated_bytes, tuple(self._held)
                at = self._timeline.origins[origin]
        self._position = end
        return self._make_moment(most, held), at

    def _count(self, block: int, num_bytes: int) -> None:
        for number, blocks in enumerate(self._kinds):
            if block in blocks:
                self._held[number] += num_bytes

    def _make_moment(self, allocated_bytes: int, held: Sequence[int]) -> TrainingMoment:
        gradient_bytes, state_bytes, workspace_bytes = held
        return TrainingMoment(
            weights_bytes=self._weights_bytes,
            gradient_bytes=gradient_bytes,
            state_bytes=state_bytes,
            activation_bytes=allocated_bytes - self._weights_bytes - sum(held),
            workspace_bytes=workspace_bytes,
        )
