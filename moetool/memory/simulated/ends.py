"""Generations simulated by their first and last steps."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.simulated.cases import Case, Simulation
from moetool.memory.simulated.work import measure_work
from moetool.simulation.caches.kinds import RESIDUAL_LENGTH
from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.replay.ends_replay import EndsReplay
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.seen_runs import GivenTokens
from moetool.simulation.memory.timeline import Timeline


def simulate_ends(run: MemoryRun, case: Case, *, num_at_ends: int) -> Simulation:
    """Return a simulation of a generation by its first steps and its last ones, which are run here.

    If it is only begun, it is that of its prompt.

    The allocator's reserve beyond what is allocated is taken from the first. The last ones come
    after a prompt that holds the tokens written before them: a GPU's memory doesn't limit that
    prompt, which isn't part of the run.
    """
    weight_bytes = list_weight_bytes(case.modules)
    num_new_tokens = case.scenario.num_new_tokens
    befores = [0]
    if not case.is_only_begun:
        befores += [*_find_requantizing(case), num_new_tokens - num_at_ends]
    is_expected = False

    def generate(num_tokens_before: int) -> Timeline:
        nonlocal is_expected
        given = run.count_given(case.scenario.num_prompt_tokens, num_tokens_before)
        expected = _expect(case, given)
        if expected is not None:
            is_expected = True
            return expected
        timeline = run.generate(
            num_prompt_tokens=case.scenario.num_prompt_tokens,
            num_tokens_before=num_tokens_before,
            num_new_tokens=num_at_ends,
            num_tokens_after=num_new_tokens - num_tokens_before - num_at_ends,
            num_calls=1 if case.is_only_begun else None,
        )
        return replace(timeline, calls=timeline.calls[:1]) if case.is_only_begun else timeline

    start, *others = map(generate, befores)
    modules = case.modules
    work = max(measure_work(modules, timeline) for timeline in (start, *others))
    replay = EndsReplay(start, others, weight_bytes)
    return Simulation(replay, work=work, is_expected=is_expected)


def _expect(case: Case, given: GivenTokens) -> Timeline | None:
    """Return one end of a generation as earlier runs let it expect; None if it has to run."""
    seen = case.seen
    if seen is None or not case.may_expect:
        return None
    return seen.expect(case.options.batch_size, given)


def _find_requantizing(case: Case) -> list[int]:
    """Return a number of steps after which a cache is soon quantized anew for the last time.

    Empty if that is never, or if the last steps contain it.
    """
    num_steps = case.scenario.num_new_tokens - 1
    last = num_steps // RESIDUAL_LENGTH * RESIDUAL_LENGTH
    return [last - 1] if case.options.cache.has_residual and last else []
