"""Simulated scenarios: the effect of each option, in bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moetool.memory.answers.figures import MemoryFigures, Method, Peak, Phase
from moetool.memory.scenario import CacheKind, Scenario, Task
from moetool.memory.simulated.runs import run_scenario
from moetool.memory.simulated.simulated_run import SimulatedFigures, SimulatedRun
from moetool.simulation.memory.long_generation import DEFAULT_BUDGET, StepBudget
from moetool.simulation.memory.memory_run import (
    DEFAULT_BLOCK_BUDGET,
    BlockBudget,
    MemoryRun,
    RunOptions,
)
from moetool.simulation.memory.replay.memory_replay import replay_timeline
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.memory.timeline import AllocatedParts
from tests.simulation.skeletons import build_family_skeleton

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=32, num_new_tokens=3)
# So few that every layer that processes a prompt of some length counts as a scan.
FEW_BLOCKS = BlockBudget(per_layer=100, per_token=0)
NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, TOP_K, FLOAT_BYTES = 4, 2, 16, 3, 4


def run(
    scenario: Scenario,
    *,
    family: str = "olmoe",
    is_brief: bool = False,
    is_only_begun: bool = False,
    step_budget: StepBudget = DEFAULT_BUDGET,
    block_budget: BlockBudget = DEFAULT_BLOCK_BUDGET,
    **overrides: Any,
) -> SimulatedRun:
    skeleton = build_family_skeleton(family, **overrides).eval()
    return run_scenario(
        skeleton,
        scenario,
        workspace_bytes=2**20,
        context_bytes=1000,
        is_brief=is_brief,
        is_only_begun=is_only_begun,
        step_budget=step_budget,
        block_budget=block_budget,
    )


def round_up(num_bytes: int) -> int:
    return -(-num_bytes // 512) * 512


def test_parts_at_the_peak_add_up_to_it_and_the_context_to_all() -> None:
    shown = run(SCENARIO)
    assert shown.method is Method.SIMULATED
    assert shown.notes == ()
    assert [peak.phase for peak in shown.peaks] == [Phase.PREFILL, Phase.DECODE]
    figures = shown.figures
    assert max(peak.allocated_bytes or 0 for peak in shown.peaks) == figures.peak_allocated_bytes
    assert {peak.parts.weights_bytes for peak in shown.peaks} == {figures.weights_bytes}
    assert {peak.parts.workspace_bytes for peak in shown.peaks} == {2**20}
    assert figures.total_device_bytes == figures.peak_reserved_bytes + 1000


def test_a_peak_names_the_layer_and_the_operation_that_made_it() -> None:
    skeleton = build_family_skeleton("olmoe", vocab_size=200_000).eval()
    in_head, in_layer = (
        run_scenario(model, SCENARIO, workspace_bytes=0, context_bytes=0).peaks[1]
        for model in (skeleton, build_family_skeleton("olmoe").eval())
    )
    assert in_head.layer is None
    assert in_layer.layer is not None
    assert in_layer.layer.startswith("model.layers.")
    assert " in mlp.experts" in in_layer.operation


def test_a_forward_pass_holds_the_logits_of_every_position() -> None:
    vocabulary = 50_000
    forward = run(replace(SCENARIO, task=Task.FORWARD, num_new_tokens=0), vocab_size=vocabulary)
    generate = run(SCENARIO, vocab_size=vocabulary)
    logits_bytes = 2 * 32 * vocabulary * FLOAT_BYTES
    (peak,) = forward.peaks
    assert logits_bytes <= peak.parts.activation_bytes < 1.1 * logits_bytes
    assert generate.peaks[0].parts.activation_bytes < logits_bytes / 4


def test_a_trace_keeps_the_experts_and_weights_of_every_layer() -> None:
    """The logits of a large vocabulary make the peak at the end."""
    traced = run(replace(SCENARIO, task=Task.TRACE, num_new_tokens=0), vocab_size=200_000)
    skeleton = build_family_skeleton("olmoe", vocab_size=200_000).eval()
    timeline = MemoryRun(skeleton, RunOptions(batch_size=2, workspace_bytes=2**20)).read(
        num_prompt_tokens=32
    )
    plain = replay_timeline(timeline, weight_bytes=list_weight_bytes(skeleton))
    kept_bytes = NUM_LAYERS * 2 * round_up(2 * 32 * TOP_K * 4)
    peak_bytes = traced.figures.peak_allocated_bytes
    assert peak_bytes - plain.peak_allocated_bytes == kept_bytes
    assert traced.figures.cache_bytes == 0


def test_a_trace_of_a_generation_keeps_the_routing_of_its_steps_as_well() -> None:
    """All of it is kept until the end, and the vocabulary makes the last step the peak."""
    generate = run(replace(SCENARIO, num_new_tokens=4), vocab_size=200_000)
    traced = run(replace(SCENARIO, task=Task.TRACE, num_new_tokens=4), vocab_size=200_000)
    of_prompt, of_step = round_up(2 * 32 * TOP_K * 4), round_up(2 * TOP_K * 4)
    kept_bytes = NUM_LAYERS * 2 * (of_prompt + 3 * of_step)
    decode = traced.peaks[1].parts.activation_bytes - generate.peaks[1].parts.activation_bytes
    assert NUM_LAYERS * 2 * of_prompt < decode <= kept_bytes
    assert traced.figures.cache_bytes == generate.figures.cache_bytes


def test_a_trace_of_routing_that_no_module_receives_says_so() -> None:
    noted = run(replace(SCENARIO, task=Task.TRACE, num_new_tokens=0), family="llama4_text").notes
    assert any("recorded routing is left out" in note for note in noted)
    assert not run(replace(SCENARIO, task=Task.TRACE, num_new_tokens=0)).notes


def test_padding_makes_masks() -> None:
    scenario = Scenario(batch_size=2, num_prompt_tokens=512, num_new_tokens=2)
    padded, plain = run(replace(scenario, has_padding=True)), run(scenario)
    mask_bytes = 2 * 512 * 512
    added_bytes = padded.peaks[0].parts.activation_bytes - plain.peaks[0].parts.activation_bytes
    assert mask_bytes <= added_bytes < 2 * mask_bytes
    assert padded.figures.cache_bytes == plain.figures.cache_bytes


def test_a_dynamic_cache_grows_and_a_static_one_is_there_from_the_start() -> None:
    dynamic, static = run(SCENARIO), run(replace(SCENARIO, cache=CacheKind.STATIC))
    position_bytes = NUM_LAYERS * 2 * 4 * HEAD_DIM * FLOAT_BYTES
    kv_share = NUM_KV_HEADS / 4
    num_positions = 2 * (32 + 3 - 1)
    assert dynamic.figures.cache_bytes == num_positions * position_bytes * kv_share
    # Each layer counts its positions in an int64.
    assert static.figures.cache_bytes == num_positions * position_bytes * kv_share + NUM_LAYERS * 8
    assert dynamic.peaks[0].parts.cache_bytes < dynamic.peaks[1].parts.cache_bytes
    assert static.peaks[0].parts.cache_bytes == static.peaks[1].parts.cache_bytes


def are_alike(one: SimulatedRun, other: SimulatedRun) -> bool:
    """Return whether two runs need the same memory, except for ids that exist from the start."""
    off_bytes = one.figures.peak_allocated_bytes - other.figures.peak_allocated_bytes
    return (
        one.figures.weights_bytes == other.figures.weights_bytes
        and one.figures.cache_bytes == other.figures.cache_bytes
        and abs(off_bytes) <= 2 * round_up(2 * 72 * 8)
    )


def test_in_brief_it_takes_as_much() -> None:
    scenario = replace(SCENARIO, num_new_tokens=40)
    brief, whole = run(scenario, is_brief=True), run(scenario)
    assert are_alike(brief, whole)
    assert brief.peaks[0] == whole.peaks[0]
    assert brief.notes == ()


def test_a_run_that_is_only_begun_is_that_of_its_prompt() -> None:
    scenario = replace(SCENARIO, num_new_tokens=40)
    begun = run(scenario, is_brief=True, is_only_begun=True)
    assert begun.peaks == run(scenario, is_brief=True).peaks[:1]
    prompt = run(replace(scenario, num_new_tokens=1))
    assert begun.figures == prompt.figures


@pytest.mark.parametrize(("num_new_tokens", "lengths"), [(4, [(32, 4)]), (9, [(32, 2), (39, 2)])])
def test_in_brief_only_ends_of_a_long_generation_run(
    num_new_tokens: int, lengths: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int]] = []
    generate: Any = MemoryRun.generate

    def watched(
        self: MemoryRun,
        *,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_tokens_before: int = 0,
        **more: Any,
    ) -> Any:
        ran.append((num_prompt_tokens + num_tokens_before, num_new_tokens))
        return generate(
            self,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=num_new_tokens,
            num_tokens_before=num_tokens_before,
            **more,
        )

    monkeypatch.setattr(MemoryRun, "generate", watched)
    run(replace(SCENARIO, num_new_tokens=num_new_tokens), is_brief=True)
    assert ran == lengths


def test_of_steps_that_do_not_follow_from_a_few_both_ends_run() -> None:
    scenario = replace(SCENARIO, num_new_tokens=40)
    whole = run(scenario)
    ends = run(scenario, step_budget=StepBudget(most_samples=2))
    assert ends.notes == (
        "Its steps differ from one to the next: the first and the last 8 of 40 were simulated.",
    )
    assert are_alike(ends, whole)
    assert ends.figures.peak_reserved_bytes >= ends.figures.peak_allocated_bytes


def test_a_family_that_looks_up_its_experts_is_approximate() -> None:
    shown = run(SCENARIO, family="dbrx")
    assert shown.method is Method.APPROXIMATE
    (note,) = shown.notes
    assert note.startswith("It can't run without data (its forward needs data: ")


def test_layers_that_process_one_token_at_a_time_are_approximate() -> None:
    scenario = Scenario(batch_size=2, num_prompt_tokens=320, num_new_tokens=4)
    whole = run(scenario, family="jamba")
    shown = run(scenario, family="jamba", block_budget=FEW_BLOCKS)
    assert (whole.method, shown.method) == (Method.SIMULATED, Method.APPROXIMATE)
    (note,) = shown.notes
    assert "process one token at a time" in note
    assert shown.figures.weights_bytes == whole.figures.weights_bytes
    for name in ("cache_bytes", "peak_allocated_bytes"):
        expected = getattr(whole.figures, name)
        assert abs(getattr(shown.figures, name) - expected) <= 0.01 * expected


def test_other_weights_shift_everything_but_the_cache() -> None:
    parts = AllocatedParts(weights_bytes=100, cache_bytes=1, activation_bytes=2, workspace_bytes=3)
    peak = Peak(phase=Phase.PREFILL, layer=None, operation="mm", parts=parts)
    run = SimulatedRun(
        SimulatedFigures(100, 10, 106, 200, 300), (peak,), Method.SIMULATED, ("note",)
    )
    assert run.shift_weights(-60) == SimulatedRun(
        SimulatedFigures(40, 10, 46, 140, 240),
        (replace(peak, parts=replace(parts, weights_bytes=40)),),
        Method.SIMULATED,
        ("note",),
    )
    assert run.shift_weights(0) is run


def test_without_its_weights_a_run_shows_what_does_not_depend_on_them() -> None:
    shown = run(SCENARIO)
    assert shown.figures.show_without_weights() == MemoryFigures(
        None, shown.figures.cache_bytes, None, None, None
    )
    for peak, hidden in zip(shown.peaks, shown.show_peaks_without_weights(), strict=True):
        assert hidden.allocated_bytes is None
        assert hidden.above_weights_bytes == peak.above_weights_bytes


def test_a_run_whose_replay_is_gone_can_not_be_limited() -> None:
    shown = replace(run(SCENARIO), replay=None)
    assert shown.limit_to(find_total(shown)) is shown
    with pytest.raises(ValueError, match="replayed"):
        shown.limit_to(find_total(shown) - 1)


WIDE = Scenario(batch_size=512, num_prompt_tokens=64, num_new_tokens=6)


def find_total(shown: SimulatedRun) -> int:
    return shown.figures.total_device_bytes


def find_least_memory(shown: SimulatedRun) -> int:
    """Return the least memory in which a run is seen to complete, to 2 MiB, by halving."""
    fits, fails = find_total(shown), 0
    while fits - fails > 2**21:
        middle = (fits + fails) // 2
        limited = shown.limit_to(middle)
        fits, fails = (middle, fails) if limited is not None else (fits, middle)
    return fits


@pytest.mark.parametrize("is_brief", [False, True])
def test_a_run_fits_in_less_memory_than_it_would_take(is_brief: bool) -> None:
    shown = run(WIDE, is_brief=is_brief)
    total, least = find_total(shown), find_least_memory(shown)
    assert least < total
    limited = shown.limit_to(least)
    assert limited is not None
    assert find_total(limited) <= least
    # The same memory is allocated, except for blocks that are handed out whole.
    allocated_bytes = limited.figures.peak_allocated_bytes
    assert allocated_bytes == pytest.approx(shown.figures.peak_allocated_bytes, rel=0.02)
    assert limited.figures.cache_bytes == shown.figures.cache_bytes
    assert limited.method is shown.method
    assert shown.limit_to(least - 2**21) is None


def test_a_run_that_has_all_it_asks_for_stays_as_it_is() -> None:
    shown = run(SCENARIO)
    assert shown.limit_to(find_total(shown)) is shown


def test_weights_that_were_shifted_are_shifted_where_memory_is_limited() -> None:
    shown = run(WIDE)
    least = find_least_memory(shown)
    shifted = shown.shift_weights(10 * 2**21)
    assert find_least_memory(shifted) == pytest.approx(least + 10 * 2**21, abs=2**22)
    limited, moved = shown.limit_to(least), shifted.limit_to(least + 10 * 2**21)
    assert limited is not None
    assert moved is not None
    assert moved == limited.shift_weights(10 * 2**21)


def test_a_run_that_follows_from_shorter_ones_fits_where_all_it_asks_for_is() -> None:
    scenario = Scenario(num_prompt_tokens=320, num_new_tokens=4)
    shown = run(scenario, family="jamba", block_budget=FEW_BLOCKS)
    assert shown.limit_to(find_total(shown)) is shown
    assert shown.limit_to(find_total(shown) - 1) is None


def test_the_skeleton_is_left_as_it_was() -> None:
    skeleton = build_family_skeleton("dbrx").eval()
    before = {name: set(vars(module)) for name, module in skeleton.named_modules()}
    shapes = {name: tuple(one.shape) for name, one in skeleton.state_dict().items()}
    for task in (Task.GENERATE, Task.TRACE):
        scenario = replace(SCENARIO, task=task)
        run_scenario(skeleton, scenario, workspace_bytes=0, context_bytes=0)
    assert {name: set(vars(module)) for name, module in skeleton.named_modules()} == before
    assert {name: tuple(one.shape) for name, one in skeleton.state_dict().items()} == shapes
    assert not any(module._forward_pre_hooks for module in skeleton.modules())
