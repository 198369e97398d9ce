"""Generations with an assistant, of which the first and the last rounds run."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.simulated.cases import Case, Simulation
from moetool.memory.simulated.work import measure_work
from moetool.simulation.assisted.drafting import find_num_candidates, join_models
from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.replay.ends_replay import EndsReplay
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes

# Of a longer generation, this many of the first rounds run, and of the last ones. The first of those
# reads the text before it, and doesn't count. In brief it is one less.
_NUM_ROUNDS_AT_START = 2
_NUM_ROUNDS_AT_END = 3
_BLOCK_BYTES = 512


def simulate_rounds(run: MemoryRun, case: Case) -> Simulation:
    """Return a simulation of a generation in which every candidate is accepted; it runs here."""
    scenario, assistant = case.scenario, case.assistant
    assert assistant is not None
    assert scenario.assistant is not None
    num_candidates = find_num_candidates(assistant)
    # The target adds a token to those it accepts.
    num_at_once = num_candidates + 1
    num_rounds = -(-scenario.num_new_tokens // num_at_once)
    num_at_start = _NUM_ROUNDS_AT_START - case.is_brief
    num_at_end = _NUM_ROUNDS_AT_END - case.is_brief
    is_whole = num_rounds <= num_at_start + num_at_end
    start = run.generate(
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
        num_calls=None if is_whole else num_at_start,
    )
    weight_bytes = list_weight_bytes(join_models(case.skeleton, assistant))
    if is_whole:
        end, others = start, []
    else:
        start = replace(start, calls=start.calls[:-1])
        num_before = (num_rounds - num_at_end) * num_at_once
        end = run.generate(
            num_prompt_tokens=scenario.num_prompt_tokens,
            num_tokens_before=num_before,
            num_new_tokens=scenario.num_new_tokens - num_before,
        )
        others = [end]
    memory = AssistantMemory(
        model=scenario.assistant,
        weights_bytes=sum(
            -(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in list_weight_bytes(assistant)
        ),
        cache_bytes=end.calls[-1].assistant_cache_bytes,
        num_candidates=num_candidates,
        num_rounds=num_rounds,
    )
    work = max(measure_work(case.skeleton, timeline) for timeline in (start, end))
    replay = EndsReplay(start, others, weight_bytes)
    return Simulation(replay, work=work, assistant=memory)
