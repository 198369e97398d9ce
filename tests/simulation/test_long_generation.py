"""Generations of which a few steps ran, against those whose every step did."""

from __future__ import annotations

from typing import Any, cast

import pytest

from moetool.simulation.long_generation import simulate_generation
from moetool.simulation.memory_replay import list_weight_bytes, replay_timeline
from moetool.simulation.memory_run import MemoryRun
from moetool.simulation.timeline import Timeline
from tests.simulation.memory_runs import options_for, tell
from tests.simulation.skeletons import build_family_skeleton

# Of the tiny families' sliding windows.
WINDOW = 16


class CountedRun:
    """A run that counts its calls of the model."""

    def __init__(self, run: MemoryRun) -> None:
        self._run = run
        self.num_calls = 0

    def generate(self, **given: Any) -> Timeline:
        timeline = self._run.generate(**given)
        self.num_calls += len(timeline.calls)
        return timeline


def build_run(family: str, **options: Any) -> tuple[CountedRun, list[int]]:
    """Return a run of a family's skeleton, and the bytes of its storages."""
    skeleton = build_family_skeleton(family).eval()
    run = MemoryRun(skeleton, options_for(family, **options))
    return CountedRun(run), list_weight_bytes(skeleton)


def simulate(run: CountedRun, **lengths: int) -> Timeline | None:
    return simulate_generation(cast("MemoryRun", run), **lengths)


@pytest.mark.parametrize(
    ("family", "num_prompt_tokens", "num_new_tokens", "options"),
    [
        # The window ends in the middle.
        ("mixtral", WINDOW - 9, 20, {}),
        ("gemma4_text", WINDOW - 6, 18, {"has_padding": True, "batch_size": 2}),
        ("gpt_oss", WINDOW + 3, 18, {}),
        ("qwen3_next", 5, 18, {}),
        ("deepseek_v3", 5, 40, {}),
        ("jamba", 5, 18, {"is_cache_static": True}),
        ("switch_transformers", 5, 18, {}),
    ],
)
def test_a_generation_of_a_few_steps_is_that_of_every_step(
    family: str,
    num_prompt_tokens: int,
    num_new_tokens: int,
    options: dict[str, Any],
) -> None:
    lengths = {"num_prompt_tokens": num_prompt_tokens, "num_new_tokens": num_new_tokens}
    run, weight_bytes = build_run(family, **options)
    extended = simulate(run, **lengths)
    in_full = run.generate(**lengths)
    assert extended is not None
    assert len(extended.calls) == num_new_tokens
    assert tell(extended) == tell(in_full)
    profiles = [
        replay_timeline(timeline, weight_bytes=weight_bytes) for timeline in (extended, in_full)
    ]
    assert profiles[0] == profiles[1]
