"""Steps after the first are made from it, as they would be simulated."""

from __future__ import annotations

import pytest

from moetool.simulation.training import training_run
from moetool.simulation.training.optimizer_kinds import Optimizer
from moetool.simulation.training.steps import TrainingTimeline
from moetool.simulation.training.training_run import TrainingOptions, run_training
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


@pytest.mark.parametrize(
    ("family", "optimizer", "has_checkpointing"),
    [
        ("olmoe", Optimizer.ADAMW, True),
        ("gpt_oss", Optimizer.SGD, False),
        ("deepseek_v2", Optimizer.ADAMW_8BIT, False),
    ],
)
def test_steps_are_those_that_would_be_simulated(
    family: str,
    optimizer: Optimizer,
    has_checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = TrainingOptions(
        *(2, 8),
        optimizer=optimizer,
        has_checkpointing=has_checkpointing,
        workspace_bytes=100,
        lt_workspace_bytes=7,
    )
    skeleton = build_family_skeleton(family, num_hidden_layers=2)
    seen: list[str] = []
    made = run_training(skeleton, options, on_step=seen.append)
    assert seen == ["step 1"]
    monkeypatch.setattr(training_run, "can_repeat", lambda _: False)
    simulated = run_training(skeleton, options, on_step=seen.append)
    assert len(seen) == 1 + training_run.NUM_STEPS
    assert made.steps == simulated.steps
    assert describe(made) == describe(simulated)
