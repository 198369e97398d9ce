"""The events of steps of training, and of steps like the last one that was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moetool.simulation.memory.timeline import Event, Origin


@dataclass(frozen=True)
class StepEvents:
    """The number of events before and after each phase of a step.

    Attributes:
        start: Before the step.
        forward_end: After the forward pass.
        backward_end: After the backward pass.
        end: After the optimizer has run and gradients are gone.
    """

    start: int
    forward_end: int
    backward_end: int
    end: int


@dataclass(frozen=True)
class TrainingTimeline:
    """Steps of training, beginning with their inputs.

    Attributes:
        events: Births and deaths, in order.
        origins: The places where blocks were born.
        steps: The steps, in order.
        gradient_blocks: The blocks of parameters' gradients, of all steps.
        state_blocks: The blocks of the optimizer's states.
        workspace_blocks: The blocks that matrix products keep.
    """

    events: tuple[Event, ...]
    origins: Sequence[Origin]
    steps: tuple[StepEvents, ...]
    gradient_blocks: frozenset[int]
    state_blocks: frozenset[int]
    workspace_blocks: frozenset[int]


def can_repeat(timeline: TrainingTimeline) -> bool:
    """Return whether a further step would take what the last one took.

    It would if that freed what it took, except states and workspaces, which are there from then on.
    """
    events = _list_events(timeline)
    lasting = _find_lasting(events)
    born = {event.block for event in events if event.num_bytes >= 0}
    return lasting <= timeline.state_blocks | timeline.workspace_blocks and all(
        event.block in born for event in events
    )


def repeat_last_step(timeline: TrainingTimeline, *, times: int) -> TrainingTimeline:
    """Return steps followed by further ones, with new blocks for what the last one took and freed."""
    for _ in range(times):
        last, events = timeline.steps[-1], _list_events(timeline)
        lasting = _find_lasting(events)
        shift = max(event.block for event in timeline.events) + 1
        repeated = [
            event._replace(block=event.block + shift)
            for event in events
            if event.block not in lasting
        ]
        gradients = {event.block for event in events} & timeline.gradient_blocks
        ends = (
            last.end + sum(event.block not in lasting for event in events[: end - last.start])
            for end in (last.start, last.forward_end, last.backward_end, last.end)
        )
        timeline = replace(
            timeline,
            events=(*timeline.events, *repeated),
            steps=(*timeline.steps, StepEvents(*ends)),
            gradient_blocks=timeline.gradient_blocks | {block + shift for block in gradients},
        )
    return timeline


def _list_events(timeline: TrainingTimeline) -> tuple[Event, ...]:
    last = timeline.steps[-1]
    return timeline.events[last.start : last.end]


def _find_lasting(events: Sequence[Event]) -> set[int]:
    """Return the blocks that are born and don't die."""
    lasting: set[int] = set()
    for event in events:
        (lasting.add if event.num_bytes >= 0 else lasting.discard)(event.block)
    return lasting
