"""Simulations of scenarios.

A scenario is simulated in one of four ways, in this order of preference:

1. In full: every kind of step of a generation runs, and the others follow (`simulate_generation`).
2. By its ends: the first and the last steps run (`_simulate_ends`), in a brief run or if steps
   differ.
3. Under balanced routing, as 1 or 2, where the model's code asks for the router's choices.
4. By two short prompts (`_simulate_short_prompts`), where layers process one token at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.rules import RoutingRule
from moetool.memory.figures import Method
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.memory.simulated.short_prompts import SHORT_PROMPTS, profile_by_short_prompts
from moetool.memory.simulated.simulated_run import (
    Replay,
    SimulatedRun,
    make_figures,
    make_peaks,
)
from moetool.memory.simulated.work import count_modules, measure_work
from moetool.simulation.memory.caching_allocator import DeviceFullError
from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
from moetool.simulation.memory.long_generation import (
    DEFAULT_BUDGET,
    StepBudget,
    simulate_generation,
)
from moetool.simulation.memory.memory_replay import (
    MemoryProfile,
    list_weight_bytes,
    replay_timeline,
)
from moetool.simulation.memory.memory_run import (
    DEFAULT_BLOCK_BUDGET,
    BlockBudget,
    MemoryRun,
    RunOptions,
)
from moetool.simulation.memory.timeline import Timeline
from moetool.simulation.meta.generation import CantSimulate, TooManyOperations

# Steps simulated at each end of a generation whose steps don't follow from a few.
_NUM_NEW_TOKENS_AT_ENDS = 8
# Steps simulated at each end in brief: the call for the prompt, and one step.
_NUM_NEW_TOKENS_AT_BRIEF_ENDS = 2


@dataclass(frozen=True)
class _Case:
    """A scenario and how it is simulated.

    Attributes:
        skeleton: The model as the scenario loads it.
        options: The options of its runs.
        is_brief: Whether the ends of a generation are enough.
        is_too_large: Whether its steps might take too long; only the ends run then, with a note.
        step_budget: The number of steps that run.
        on_step: Receives a few words on each step of a run.
    """

    skeleton: PreTrainedModel
    scenario: Scenario
    options: RunOptions
    is_brief: bool
    is_too_large: bool
    step_budget: StepBudget
    on_step: Callable[[str], None] | None


@dataclass(frozen=True)
class _Simulation:
    """A simulation that has run.

    Attributes:
        replay: Returns the profile under a limit on the allocator's memory in bytes, or none.
        work: A measure of the time that one pass took: the number of watched modules, plus a
            fraction of the number of events of a prompt and a step.
    """

    replay: Replay
    work: int


def run_scenario(
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
    on_step: Callable[[str], None] | None = None,
) -> SimulatedRun:
    """Return a simulated run of a scenario.

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
        on_step: Receives a few words on each pass through the model and each layer in it.

    Raises:
        CantSimulate: The model's code needs data other than the router's choices.
    """
    if scenario.task is Task.TRAIN:
        # Imported here because it builds on this package's runs.
        from moetool.memory.training.training_runs import simulate_training

        return simulate_training(
            skeleton,
            scenario,
            workspace_bytes=workspace_bytes,
            lt_workspace_bytes=lt_workspace_bytes,
            context_bytes=context_bytes,
            on_step=on_step,
        )
    options = RunOptions(
        batch_size=scenario.batch_size,
        has_padding=scenario.has_padding,
        is_cache_static=scenario.cache is CacheKind.STATIC,
        is_routing_kept=scenario.task is Task.TRACE,
        workspace_bytes=workspace_bytes,
        lt_workspace_bytes=lt_workspace_bytes,
        block_budget=block_budget,
    )
    notes: list[str] = []
    most_steps_work = step_budget.most_samples * count_modules(skeleton)
    is_too_large = most_work is not None and most_steps_work > most_work
    case = _Case(
        skeleton,
        scenario,
        options,
        is_brief=is_brief,
        is_too_large=is_too_large,
        step_budget=step_budget,
        on_step=on_step,
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
    if on_step is not None:
        on_step("replaying its allocations")
    profile = simulation.replay(None)
    is_filled = scenario.cache is CacheKind.DYNAMIC
    return SimulatedRun(
        make_figures(profile, context_bytes=context_bytes),
        make_peaks(profile),
        Method.APPROXIMATE if needs_data else method,
        tuple(dict.fromkeys(notes)),
        prompt_cache_bytes=profile.prompt_cache_bytes if is_filled else 0,
        needs_data=needs_data,
        work=simulation.work,
        replay=simulation.replay,
    )


def _simulate_balanced(case: _Case, reason: str, *, notes: list[str]) -> _Simulation:
    """Return a simulation in which every expert gets the same number of tokens."""
    notes.append(
        f"It can't run without data ({reason}), so it was simulated as if routers sent every expert "
        "the same number of tokens."
    )
    # Experts that run one by one make many blocks, but not more for every token.
    options = replace(case.options, is_routing_balanced=True, may_scan=True)
    return _simulate(replace(case, options=options), notes=notes)


def _simulate(case: _Case, *, notes: list[str]) -> _Simulation:
    """Return a simulation of a scenario with the options of a case."""
    skeleton, scenario = case.skeleton, case.scenario
    modules: tuple[nn.Module, ...] = ()
    if case.options.is_routing_kept:
        modules = _find_routing_modules(skeleton, notes=notes)
    run = MemoryRun(skeleton, case.options, routing_modules=modules, on_step=case.on_step)
    weight_bytes = list_weight_bytes(skeleton)
    num_prompt_tokens, num_new_tokens = scenario.num_prompt_tokens, scenario.num_new_tokens
    if scenario.task is Task.FORWARD:
        timeline = run.forward(num_prompt_tokens=num_prompt_tokens)
    elif num_new_tokens == 0:
        timeline = run.read(num_prompt_tokens=num_prompt_tokens)
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
        return _simulate_ends(run, case, num_at_ends=_NUM_NEW_TOKENS_AT_BRIEF_ENDS)
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
            return _simulate_ends(run, case, num_at_ends=_NUM_NEW_TOKENS_AT_ENDS)
        timeline = found
    return _Simulation(
        lambda capacity_bytes: replay_timeline(
            timeline, weight_bytes=weight_bytes, capacity_bytes=capacity_bytes
        ),
        work=measure_work(skeleton, timeline),
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


def _simulate_short_prompts(case: _Case, *, notes: list[str]) -> _Simulation:
    """Return a simulation that follows from shorter prompts, which are run here.

    Memory that the allocator could give back is unknown: the run completes if everything it asks
    for is available.
    """
    notes.append(
        "Some of its layers process one token at a time: the figures follow from those of prompts of "
        f"{SHORT_PROMPTS[0]} and {SHORT_PROMPTS[1]} tokens."
    )
    scenario, work = case.scenario, 0

    def profile(num_prompt_tokens: int) -> MemoryProfile:
        nonlocal work
        short = replace(
            scenario,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=min(scenario.num_new_tokens, 2),
        )
        options = replace(case.options, may_scan=True)
        simulation = _simulate(
            replace(case, scenario=short, options=options, is_brief=False, is_too_large=False),
            notes=notes,
        )
        work = simulation.work
        return simulation.replay(None)

    found = profile_by_short_prompts(
        profile,
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
    )

    def replay(capacity_bytes: int | None) -> MemoryProfile:
        if capacity_bytes is not None and found.peak_reserved_bytes > capacity_bytes:
            raise DeviceFullError
        return found

    return _Simulation(replay, work=work)


def _simulate_ends(run: MemoryRun, case: _Case, *, num_at_ends: int) -> _Simulation:
    """Return a simulation of a generation by its first steps and its last ones, which are run here.

    The allocator's reserve beyond what is allocated is taken from the first. The last ones come
    after a prompt that holds the tokens written before them: a GPU's memory doesn't limit that
    prompt, which isn't part of the run.
    """
    weight_bytes = list_weight_bytes(case.skeleton)
    start, end = (
        run.generate(
            num_prompt_tokens=case.scenario.num_prompt_tokens,
            num_tokens_before=num_tokens_before,
            num_new_tokens=num_at_ends,
        )
        for num_tokens_before in (0, case.scenario.num_new_tokens - num_at_ends)
    )

    def replay(capacity_bytes: int | None) -> MemoryProfile:
        first = replay_timeline(start, weight_bytes=weight_bytes, capacity_bytes=capacity_bytes)
        last = replay_timeline(
            end,
            weight_bytes=weight_bytes,
            capacity_bytes=capacity_bytes,
            is_prompt_limited=False,
        )
        peaks = [peak for peak in (first.decode, last.decode) if peak is not None]
        decode = max(peaks, key=lambda peak: peak.parts.above_weights_bytes)
        decode_bytes = first.weights_bytes + decode.parts.above_weights_bytes
        allocated_bytes = max(first.peak_allocated_bytes, decode_bytes)
        spare_bytes = first.peak_reserved_bytes - first.peak_allocated_bytes
        reserved_bytes = allocated_bytes + spare_bytes
        return replace(
            first,
            cache_bytes=last.cache_bytes,
            peak_allocated_bytes=allocated_bytes,
            peak_reserved_bytes=reserved_bytes
            if capacity_bytes is None
            else min(reserved_bytes, capacity_bytes),
            decode=decode,
        )

    work = max(measure_work(case.skeleton, timeline) for timeline in (start, end))
    return _Simulation(replay, work=work)


def _find_routing_modules(skeleton: PreTrainedModel, *, notes: list[str]) -> tuple[nn.Module, ...]:
    layers = find_experts(skeleton).layers
    received = [layer for layer in layers if layer.rule is RoutingRule.RECEIVED]
    if len(received) < len(layers):
        notes.append(
            "Memory for the recorded routing is left out where experts don't receive it as tensors."
        )
    return tuple(skeleton.get_submodule(layer.experts_path) for layer in received)
