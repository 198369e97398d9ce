"""Long prompts that follow from short ones."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from moetool.memory.scenario import Scenario
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.memory_run import BlockBudget
from moetool.simulation.memory.seen_runs import SeenByOptions
from tests.simulation.skeletons import build_family_skeleton


def test_short_prompts_run_once_for_all_longer_ones_of_a_batch() -> None:
    skeleton = build_family_skeleton("jamba").eval()
    seen = SeenByOptions()

    def simulate(num_prompt_tokens: int, seen: SeenByOptions | None) -> tuple[SimulatedRun, int]:
        scenario = Scenario(batch_size=2, num_prompt_tokens=num_prompt_tokens, num_new_tokens=4)
        passes: list[str] = []
        found = run_scenario(
            skeleton,
            scenario,
            workspace_bytes=2**20,
            context_bytes=1000,
            block_budget=BlockBudget(per_layer=100, per_token=0),
            seen_before=seen,
            on_step=passes.append,
        )
        check_replay(found)
        return replace(found, replay=None), sum("," not in step for step in passes)

    _, num_passes = simulate(320, seen)
    again, num_passes_again = simulate(480, seen)
    alone, num_passes_alone = simulate(480, None)
    assert again == alone
    assert again.notes
    assert num_passes == num_passes_alone > num_passes_again


def check_replay(run: SimulatedRun) -> None:
    """Check that another process can be sent a run's replay, which needs all that the run takes."""
    assert run.replay is not None
    replay = pickle.loads(pickle.dumps(run.replay))
    needed_bytes = run.figures.peak_reserved_bytes
    assert replay(needed_bytes) == replay(None) == run.replay(None)
    assert replay(None).peak_reserved_bytes == needed_bytes
    with pytest.raises(DeviceFullError):
        replay(needed_bytes - 1)
