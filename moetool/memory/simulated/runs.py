"""Simulations of scenarios.

A scenario is simulated in one of four ways, in this order of preference:

1. In full: every kind of step of a generation runs, and the others follow (`simulate_generation`).
2. By its ends: the first and the last steps run (`simulate_ends`), in a brief run or if steps
   differ.
3. Under balanced routing, as 1 or 2, where the model's code asks for the router's choices.
4. By two short prompts (`_simulate_short_prompts`), where layers process one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec

from torch import nn
from transformers import PreTrainedModel

from moetool.memory.answers.figures import Method
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.assisted_runs import simulate_rounds
from moetool.memory.simulated.cases import Case, RecordedRun, Simulation
from moetool.memory.simulated.ends import simulate_ends
from moetool.memory.simulated.routing_modules import find_routing_modules
from moetool.memory.simulated.short_prompts import (
    SHORT_PROMPTS,
    ExtrapolatedReplay,
    profile_by_short_prompts,
)
from moetool.memory.simulated.simulated_run import SimulatedRun, make_figures, make_peaks
from moetool.memory.simulated.work import count_modules, measure_work
from moetool.simulation.attention.flash import is_flash
from moetool.simulation.attention.flex import FLEX_ATTENTION
from moetool.simulation.caches.kinds import RESIDUAL_LENGTH
from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
from moetool.simulation.memory.long_generation import (
    DEFAULT_BUDGET,
    StepBudget,
    simulate_generation,
)
from moetool.simulation.memory.memory_run import (
    DEFAULT_BLOCK_BUDGET,
    BlockBudget,
    MemoryRun,
    RunOptions,
)
from moetool.simulation.memory.replay.memory_replay import MemoryProfile
from moetool.simulation.memory.replay.timeline_replay import TimelineReplay
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.seen_runs import SeenByOptions
from moetool.simulation.memory.timeline import Timeline
from moetool.simulation.meta.generation import CantSimulate, TooManyOperations

_Given = ParamSpec("_Given")

# Steps simulated at each end of a generation whose steps don't follow from a few.
_NUM_NEW_TOKENS_AT_ENDS = 8
# Steps simulated at each end in brief: the call for the prompt, and one step.
_NUM_NEW_TOKENS_AT_BRIEF_ENDS = 2


def record_scenario(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    *,
    workspace_bytes: int,
    context_bytes: int,
    lt_workspace_bytes: int = LT_WORKSPACE_BYTES,
    is_brief: bool = False,
    needs_data: str | None = None,
    most_work: int | None = None,
    step_budget: StepBudget = DEFAULT_BUDGET,
    block_budget: BlockBudget = DEFAULT_BLOCK_BUDGET,
    assistant: PreTrainedModel | None = None,
    seen_before: SeenByOptions | None = None,
    may_expect: bool = False,
    is_only_begun: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> RecordedRun:
    """Return a run of a scenario that has yet to be replayed.

    A model whose code asks which experts its routers chose, or how many tokens each got, runs under
    the assumption that every expert gets the same number of tokens.

    Args:
        skeleton: The model as the scenario loads it, on the meta device.
        workspace_bytes: Memory that matrix products keep on the GPU in question.
        context_bytes: The CUDA context's size on that GPU.
        lt_workspace_bytes: Memory that products with a bias keep in addition.
        is_brief: Of a generation, simulate only the prefill, the first decoding step and the last
            one. That takes less time, and the allocator's reserve is less exact.
        needs_data: Why the model's code is known to need balanced routing, from an earlier run of
            the same model; None to try without.
        most_work: The work that the steps of a generation may take; if they might take more, the
            run is brief. None for no limit.
        step_budget: The number of steps that run.
        block_budget: The blocks by which layers that process one token at a time are recognized.
        assistant: The model that drafts tokens, on the meta device; None if the scenario has none.
        seen_before: Earlier runs of the same skeleton, to which this one is added; None without any.
        may_expect: Whether a brief run may be what earlier ones let expect, without running.
        is_only_begun: Whether the prompt is enough of a brief run.
        on_step: Receives a few words on each pass through the model and each layer in it.

    Raises:
        CantSimulate: The model's code needs data other than the router's choices.
    """
    if scenario.task is Task.TRAIN:
        # The backward pass is only imported where it is used.
        from moetool.memory.simulated.training_runs import simulate_training

        trained = simulate_training(
            skeleton,
            scenario,
            workspace_bytes=workspace_bytes,
            lt_workspace_bytes=lt_workspace_bytes,
            context_bytes=context_bytes,
            on_step=on_step,
        )
        return RecordedRun(trained.work, lambda _: trained)
    options = replace(
        make_run_options(
            scenario, workspace_bytes=workspace_bytes, lt_workspace_bytes=lt_workspace_bytes
        ),
        is_routing_kept=scenario.task is Task.TRACE,
        block_budget=block_budget,
    )
    notes: list[str] = []
    modules = (seen_before or SeenByOptions()).modules.of(skeleton)
    most_steps_work = step_budget.most_samples * count_modules(modules)
    is_too_large = most_work is not None and most_steps_work > most_work
    case = Case(
        skeleton,
        scenario,
        options,
        is_brief=is_brief,
        is_too_large=is_too_large,
        step_budget=step_budget,
        on_step=on_step,
        assistant=assistant,
        seen_before=seen_before,
        may_expect=may_expect,
        is_only_begun=is_only_begun,
    )
    method = Method.SIMULATED
    try:
        simulation = (
            _simulate_balanced(case, needs_data, notes=notes)
            if needs_data
            else _simulate(case, notes=notes)
        )
    except TooManyOperations:
        method = Method.APPROXIMATE
        simulation = _simulate_short_prompts(case, notes=notes)
    except CantSimulate as error:
        if needs_data:
            raise
        needs_data = error.reason
        simulation = _simulate_balanced(case, needs_data, notes=notes)
    # Kernels of other packages are not run, and follow from their sources.
    has_stand_ins = (
        is_flash(scenario.attention)
        or scenario.attention == FLEX_ATTENTION
        or options.cache.has_residual
    )
    is_filled = scenario.cache_plan.is_filled_by_tokens

    def finish(profile: MemoryProfile | None) -> SimulatedRun:
        if profile is None:
            if on_step is not None:
                on_step("replaying its allocations")
            profile = simulation.replay(None)
        return SimulatedRun(
            make_figures(profile, context_bytes=context_bytes),
            make_peaks(profile),
            Method.APPROXIMATE if needs_data or has_stand_ins or assistant else method,
            tuple(dict.fromkeys(notes)),
            prompt_cache_bytes=profile.prompt_cache_bytes if is_filled else 0,
            host_cache_bytes=profile.host_cache_bytes,
            needs_data=needs_data,
            communication_bytes=profile.communication_bytes,
            work=simulation.work,
            replay=simulation.replay,
            assistant=simulation.assistant,
        )

    return RecordedRun(simulation.work, finish, simulation.replay, simulation.is_expected)


def _finish(record: Callable[_Given, RecordedRun]) -> Callable[_Given, SimulatedRun]:
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> SimulatedRun:
        """Return the simulated run of what `record_scenario` takes."""
        return record(*args, **kwargs).finish(None)

    return run


run_scenario = _finish(record_scenario)


def make_run_options(
    scenario: Scenario, *, workspace_bytes: int, lt_workspace_bytes: int
) -> RunOptions:
    """Return the options that a scenario's runs share, on one GPU or several."""
    return RunOptions(
        batch_size=scenario.batch_size,
        has_padding=scenario.has_padding,
        cache=scenario.cache_plan,
        num_beams=scenario.num_beams,
        num_return_sequences=scenario.num_return_sequences,
        workspace_bytes=workspace_bytes,
        lt_workspace_bytes=lt_workspace_bytes,
    )


def _simulate_balanced(case: Case, reason: str, *, notes: list[str]) -> Simulation:
    """Return a simulation in which every expert gets the same number of tokens."""
    notes.append(
        f"It can't run without data ({reason}), so it was simulated as if routers sent every expert "
        "the same number of tokens."
    )
    # Experts that run one by one make many blocks, but not more for every token.
    options = replace(case.options, is_routing_balanced=True, may_scan=True)
    return _simulate(replace(case, options=options), notes=notes)


def _simulate(case: Case, *, notes: list[str]) -> Simulation:
    """Return a simulation of a scenario with the options of a case."""
    skeleton, scenario = case.skeleton, case.scenario
    modules: tuple[nn.Module, ...] = ()
    if case.options.is_routing_kept:
        modules = find_routing_modules(skeleton, notes=notes)
    run = MemoryRun(
        skeleton,
        case.options,
        routing_modules=modules,
        assistant=case.assistant,
        seen=case.seen,
        on_step=case.on_step,
    )
    num_prompt_tokens, num_new_tokens = scenario.num_prompt_tokens, scenario.num_new_tokens
    if scenario.task is Task.FORWARD:
        timeline = run.forward(num_prompt_tokens=num_prompt_tokens)
    elif case.assistant is not None:
        return simulate_rounds(run, case)
    elif num_new_tokens == 0:
        timeline = run.read(num_prompt_tokens=num_prompt_tokens)
    elif case.options.cache.has_residual and num_new_tokens > 2 * _NUM_NEW_TOKENS_AT_ENDS:
        notes.append(
            f"Every {RESIDUAL_LENGTH} tokens, the whole cache is quantized anew: the first and the last "
            "steps were simulated, and the last time that this happens."
        )
        num_at_ends = _NUM_NEW_TOKENS_AT_BRIEF_ENDS if case.is_brief else _NUM_NEW_TOKENS_AT_ENDS
        return simulate_ends(run, case, num_at_ends=num_at_ends)
    elif not run.can_start_later:
        timeline = _generate_from_start(run, scenario)
    elif (
        case.is_brief or case.is_too_large
    ) and num_new_tokens > 2 * _NUM_NEW_TOKENS_AT_BRIEF_ENDS:
        if not case.is_brief:
            notes.append(
                "It has too many modules to simulate every step: only the first and the last of "
                f"{num_new_tokens:,} steps were simulated."
            )
        return simulate_ends(run, case, num_at_ends=_NUM_NEW_TOKENS_AT_BRIEF_ENDS)
    else:
        found = simulate_generation(
            run,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=num_new_tokens,
            budget=case.step_budget,
        )
        if found is None:
            notes.append(
                f"Its steps differ from one to the next: the first and the last "
                f"{_NUM_NEW_TOKENS_AT_ENDS} of {num_new_tokens:,} were simulated."
            )
            return simulate_ends(run, case, num_at_ends=_NUM_NEW_TOKENS_AT_ENDS)
        timeline = found
    return Simulation(
        TimelineReplay(timeline, list_weight_bytes(case.modules)),
        work=measure_work(case.modules, timeline),
    )


def _generate_from_start(run: MemoryRun, scenario: Scenario) -> Timeline:
    """Return the timeline of a generation that can't be joined halfway.

    Its cache is static and allocated at the start: later steps only add the ids they write, 8 bytes
    each.
    """
    sizes = {
        "num_prompt_tokens": scenario.num_prompt_tokens,
        "num_new_tokens": scenario.num_new_tokens,
    }
    if scenario.num_new_tokens <= _NUM_NEW_TOKENS_AT_ENDS:
        return run.generate(**sizes)
    timeline = run.generate(**sizes, num_calls=_NUM_NEW_TOKENS_AT_ENDS)
    return replace(timeline, calls=timeline.calls[:-1])


def _simulate_short_prompts(case: Case, *, notes: list[str]) -> Simulation:
    """Return a simulation that follows from shorter prompts, which are run here."""
    notes.append(
        "Some of its layers process one token at a time: the figures follow from those of prompts of "
        f"{SHORT_PROMPTS[0]} and {SHORT_PROMPTS[1]} tokens."
    )
    scenario, options, work = case.scenario, replace(case.options, may_scan=True), 0
    seen = SeenByOptions() if case.seen_before is None else case.seen_before

    def profile(num_prompt_tokens: int) -> MemoryProfile:
        nonlocal work
        short = replace(
            scenario,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=min(scenario.num_new_tokens, 2),
        )

        def run() -> tuple[MemoryProfile, int, list[str]]:
            notes: list[str] = []
            simulation = _simulate(
                replace(case, scenario=short, options=options, is_brief=False, is_too_large=False),
                notes=notes,
            )
            return simulation.replay(None), simulation.work, notes

        found, work, more_notes = seen.find_once((short, options), run)
        notes.extend(more_notes)
        return found

    found = profile_by_short_prompts(
        profile,
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
    )
    return Simulation(ExtrapolatedReplay(found), work=work)
