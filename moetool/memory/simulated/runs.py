"""Scenarios, run in simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.rules import RoutingRule
from moetool.memory.result import MemoryFigures, Method, Peak, Phase
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.memory.simulated.short_prompts import SHORT_PROMPTS, profile_by_short_prompts
from moetool.simulation.memory.caching_allocator import DeviceFullError
from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
from moetool.simulation.memory.long_generation import simulate_generation
from moetool.simulation.memory.memory_replay import (
    MemoryProfile,
    PhasePeak,
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

# Of a generation whose steps don't follow from a few, this many at each end run.
_NUM_NEW_TOKENS_AT_ENDS = 8
# And of one that is told in brief: the call for the prompt, and one step.
_NUM_NEW_TOKENS_AT_BRIEF_ENDS = 2


# Returns what a run takes where torch's allocator may take so many bytes of a GPU; None stands for all
# it asks for. Raises `DeviceFullError` where the run doesn't run through in that much.
Replay = Callable[[int | None], MemoryProfile]


@dataclass(frozen=True)
class SimulatedRun:
    """What a simulation showed of a scenario.

    Attributes:
        figures: What it takes.
        peaks: Of prefill and of decoding.
        method: Whether anything was assumed.
        notes: What was.
        prompt_cache_bytes: What the cache holds of the prompt alone; 0 if not all of that is filled.
        shifted_bytes: What was added to its weights since it was simulated.
        replay: Replays it where the allocator may take less; None if it isn't kept.
    """

    figures: MemoryFigures
    peaks: tuple[Peak, ...]
    method: Method
    notes: tuple[str, ...] = ()
    prompt_cache_bytes: int = 0
    shifted_bytes: int = field(default=0, compare=False)
    replay: Replay | None = field(default=None, repr=False, compare=False)

    def shift_weights(self, num_bytes: int | None) -> SimulatedRun:
        """Return the same run with weights that take so many bytes more; None if that is unknown."""
        figures = self.figures
        return replace(
            self,
            figures=MemoryFigures(
                weights_bytes=_add(figures.weights_bytes, num_bytes),
                cache_bytes=figures.cache_bytes,
                peak_allocated_bytes=_add(figures.peak_allocated_bytes, num_bytes),
                peak_reserved_bytes=_add(figures.peak_reserved_bytes, num_bytes),
                total_device_bytes=_add(figures.total_device_bytes, num_bytes),
            ),
            peaks=tuple(
                replace(peak, weights_bytes=_add(peak.weights_bytes, num_bytes))
                for peak in self.peaks
            ),
            shifted_bytes=self.shifted_bytes + (num_bytes or 0),
        )

    def limit_to(self, memory_bytes: int) -> SimulatedRun | None:
        """Return the same run on a GPU of that much memory; None if it doesn't run through there.

        Where the GPU has no room left, torch's allocator gives back what it holds in reserve and
        asks again, so that a run may fit that would take more.
        """
        figures = self.figures
        assert figures.total_device_bytes is not None
        assert figures.peak_reserved_bytes is not None
        if figures.total_device_bytes <= memory_bytes:
            return self
        assert self.replay is not None
        context_bytes = figures.total_device_bytes - figures.peak_reserved_bytes
        try:
            profile = self.replay(memory_bytes - context_bytes - self.shifted_bytes)
        except DeviceFullError:
            return None
        limited = replace(
            self,
            figures=_make_figures(profile, context_bytes=context_bytes),
            peaks=_make_peaks(profile),
            shifted_bytes=0,
        )
        return limited.shift_weights(self.shifted_bytes)


def run_scenario(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    *,
    workspace_bytes: int,
    context_bytes: int,
    lt_workspace_bytes: int = LT_WORKSPACE_BYTES,
    is_brief: bool = False,
    block_budget: BlockBudget = DEFAULT_BLOCK_BUDGET,
) -> SimulatedRun:
    """Return what a simulation of a scenario shows.

    A model whose code asks which experts its routers chose, or how many tokens each got, runs under
    the assumption that they choose in turns.

    Args:
        skeleton: The model as the scenario loads it, on the meta device.
        scenario: What is run.
        workspace_bytes: What products of matrices keep on the GPU in question.
        context_bytes: What a CUDA context takes on it.
        lt_workspace_bytes: What products with a bias keep besides.
        is_brief: Of a generation, simulate the prefill, the first step of decoding and the last
            one alone: it takes less time, and says less of what the allocator holds in reserve.
        block_budget: What layers that go from token to token are recognized by.

    Raises:
        CantSimulate: The model's code needs data besides.
    """
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
    method = Method.SIMULATED
    try:
        replay = _simulate(skeleton, scenario, options, notes=notes, is_brief=is_brief)
    except TooManyOperations:
        method = Method.APPROXIMATE
        replay = _simulate_short_prompts(skeleton, scenario, options, notes=notes)
    except CantSimulate as error:
        notes.append(
            f"Its code asks for what only data tells ({error.reason}): it was simulated as if "
            "routers sent every expert as many tokens as any other."
        )
        method = Method.APPROXIMATE
        # Experts that run one by one make many blocks, but no more for every token.
        options = replace(options, is_routing_balanced=True, may_scan=True)
        replay = _simulate(skeleton, scenario, options, notes=notes, is_brief=is_brief)
    profile = replay(None)
    is_filled = scenario.cache is CacheKind.DYNAMIC
    return SimulatedRun(
        _make_figures(profile, context_bytes=context_bytes),
        _make_peaks(profile),
        method,
        tuple(notes),
        prompt_cache_bytes=profile.prompt_cache_bytes if is_filled else 0,
        replay=replay,
    )


def _simulate(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    options: RunOptions,
    *,
    notes: list[str],
    is_brief: bool,
) -> Replay:
    """Return what replays a scenario, which is run here."""
    modules: tuple[nn.Module, ...] = ()
    if options.is_routing_kept:
        modules = _find_routing_modules(skeleton, notes=notes)
    run = MemoryRun(skeleton, options, routing_modules=modules)
    weight_bytes = list_weight_bytes(skeleton)
    num_prompt_tokens, num_new_tokens = scenario.num_prompt_tokens, scenario.num_new_tokens
    if scenario.task is Task.FORWARD:
        timeline = run.forward(num_prompt_tokens=num_prompt_tokens)
    elif num_new_tokens == 0:
        timeline = run.read(num_prompt_tokens=num_prompt_tokens)
    elif not run.can_start_later:
        timeline = _generate_from_start(run, scenario)
    elif is_brief and num_new_tokens > 2 * _NUM_NEW_TOKENS_AT_BRIEF_ENDS:
        return _simulate_ends(
            run, scenario, weight_bytes=weight_bytes, num_at_ends=_NUM_NEW_TOKENS_AT_BRIEF_ENDS
        )
    else:
        found = simulate_generation(
            run, num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens
        )
        if found is None:
            notes.append(
                f"Its steps differ from one to the next: the first and the last "
                f"{_NUM_NEW_TOKENS_AT_ENDS} of {num_new_tokens:,} were simulated."
            )
            return _simulate_ends(
                run, scenario, weight_bytes=weight_bytes, num_at_ends=_NUM_NEW_TOKENS_AT_ENDS
            )
        timeline = found
    return lambda capacity_bytes: replay_timeline(
        timeline, weight_bytes=weight_bytes, capacity_bytes=capacity_bytes
    )


def _generate_from_start(run: MemoryRun, scenario: Scenario) -> Timeline:
    """Return the timeline of a generation that can't be joined later.

    Its cache is static, which is there from the start: what later steps take besides are the ids
    written, 8 bytes each.
    """
    sizes = {
        "num_prompt_tokens": scenario.num_prompt_tokens,
        "num_new_tokens": scenario.num_new_tokens,
    }
    if scenario.num_new_tokens <= _NUM_NEW_TOKENS_AT_ENDS:
        return run.generate(**sizes)
    timeline = run.generate(**sizes, num_calls=_NUM_NEW_TOKENS_AT_ENDS)
    return replace(timeline, calls=timeline.calls[:-1])


def _simulate_short_prompts(
    skeleton: PreTrainedModel, scenario: Scenario, options: RunOptions, *, notes: list[str]
) -> Replay:
    """Return what replays a scenario that follows from shorter ones, which are run here.

    What giving memory back would save isn't known of it: it runs through if all it asks for is there.
    """
    notes.append(
        "Some of its layers go from token to token: the figures follow from those of prompts of "
        f"{SHORT_PROMPTS[0]} and {SHORT_PROMPTS[1]} tokens."
    )

    def profile(num_prompt_tokens: int) -> MemoryProfile:
        short = replace(
            scenario,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=min(scenario.num_new_tokens, 2),
        )
        return _simulate(
            skeleton, short, replace(options, may_scan=True), notes=notes, is_brief=False
        )(None)

    found = profile_by_short_prompts(
        profile,
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
    )

    def replay(capacity_bytes: int | None) -> MemoryProfile:
        if capacity_bytes is not None and found.peak_reserved_bytes > capacity_bytes:
            raise DeviceFullError
        return found

    return replay


def _simulate_ends(
    run: MemoryRun, scenario: Scenario, *, weight_bytes: list[int], num_at_ends: int
) -> Replay:
    """Return what replays a generation by its first steps and its last ones, which are run here.

    What the allocator holds in reserve beyond what is allocated is taken from the first. The last
    ones come after a prompt that holds the tokens written before them: a GPU's memory doesn't limit
    that prompt, which isn't run.
    """
    start, end = (
        run.generate(
            num_prompt_tokens=scenario.num_prompt_tokens,
            num_tokens_before=more,
            num_new_tokens=num_at_ends,
        )
        for more in (0, scenario.num_new_tokens - num_at_ends)
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
        decode = max(peaks, key=lambda peak: peak.parts.allocated_bytes)
        allocated_bytes = max(first.peak_allocated_bytes, decode.parts.allocated_bytes)
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

    return replay


def _find_routing_modules(skeleton: PreTrainedModel, *, notes: list[str]) -> tuple[nn.Module, ...]:
    layers = find_experts(skeleton).layers
    received = [layer for layer in layers if layer.rule is RoutingRule.RECEIVED]
    if len(received) < len(layers):
        notes.append(
            "What is kept of the routing is left out where experts don't receive it as tensors."
        )
    return tuple(skeleton.get_submodule(layer.experts_path) for layer in received)


def _make_figures(profile: MemoryProfile, *, context_bytes: int) -> MemoryFigures:
    return MemoryFigures(
        weights_bytes=profile.weights_bytes,
        cache_bytes=profile.cache_bytes,
        peak_allocated_bytes=profile.peak_allocated_bytes,
        peak_reserved_bytes=profile.peak_reserved_bytes,
        total_device_bytes=profile.peak_reserved_bytes + context_bytes,
    )


def _make_peaks(profile: MemoryProfile) -> tuple[Peak, ...]:
    peaks = [_make_peak(Phase.PREFILL, profile.prefill)]
    if profile.decode is not None:
        peaks.append(_make_peak(Phase.DECODE, profile.decode))
    return tuple(peaks)


def _make_peak(phase: Phase, peak: PhasePeak) -> Peak:
    module = f" in {peak.origin.module}" if peak.origin.module else ""
    parts = peak.parts
    return Peak(
        phase=phase,
        layer=peak.origin.layer or None,
        operation=f"{peak.origin.operation}{module}",
        weights_bytes=parts.weights_bytes,
        cache_bytes=parts.cache_bytes,
        activation_bytes=parts.activation_bytes,
        workspace_bytes=parts.workspace_bytes,
    )


def _add(number: int | None, more: int | None) -> int | None:
    return None if number is None or more is None else number + more
