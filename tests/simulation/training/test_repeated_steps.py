"""The last step is a copy of the one before, as it would be simulated."""

from __future__ import annotations

import pytest

from moetool.simulation.training import training_run
from moetool.simulation.training.training_run import (
    TrainingOptions,
    TrainingTimeline,
    run_training,
)
from tests.simulation.skeletons import build_family_skeleton


def describe(timeline: TrainingTimeline) -> list[tuple[int, int, int, list[bool]]]:
    """Return the events, with blocks numbered in the order of their births, and their kinds."""
    numbers: dict[int, int] = {}
    kinds = (timeline.gradient_blocks, timeline.state_blocks, timeline.workspace_blocks)
    return [
        (
            numbers.setdefault(event.block, len(numbers)),
            event.num_bytes,
            event.origin,
            [event.block in kind for kind in kinds],
        )
        for event in timeline.events
    ]


def test_a_copied_step_is_the_one_that_would_be_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(2, 8, has_checkpointing=True, workspace_bytes=100)
    skeleton = build_family_skeleton("olmoe", num_hidden_layers=2)
    copied = run_training(skeleton, options)
    monkeypatch.setattr(training_run, "_NUM_SIMULATED_STEPS", training_run.NUM_STEPS)
    simulated = run_training(skeleton, options)
    assert copied.steps == simulated.steps
    assert describe(copied) == describe(simulated)
    # Otherwise both were simulated.
    assert {event.block for event in copied.events} != {event.block for event in simulated.events}
