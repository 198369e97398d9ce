"""Long prompts that follow from short ones."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.scenario import Scenario
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.simulation.memory.memory_run import BlockBudget
from moetool.simulation.memory.seen_runs import SeenByOptions
from tests.simulation.skeletons import build_family_skeleton


def test_short_prompts_run_once_for_all_longer_ones_of_a_batch() -> None:
    skeleton = build_family_skeleton("jamba").eval()
    seen = SeenByOptions()

    def simulate(num_prompt_tokens: int, seen: SeenByOptions | None) -> tuple[SimulatedRun, int]:
        scenario = Scenario(batch_size=2, num_prompt_tokens=num_prompt_tokens, num_new_tokens=4)
        passes: list[str] = []
        shown = run_scenario(
            skeleton,
            scenario,
            workspace_bytes=2**20,
            context_bytes=1000,
            block_budget=BlockBudget(per_layer=100, per_token=0),
            seen_before=seen,
            on_step=passes.append,
        )
        return replace(shown, replay=None), sum("," not in step for step in passes)

    _, num_passes = simulate(320, seen)
    again, num_passes_again = simulate(480, seen)
    alone, num_passes_alone = simulate(480, None)
    assert again == alone
    assert again.notes
    assert num_passes == num_passes_alone > num_passes_again
