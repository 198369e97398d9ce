"""Simulated caches and searches, compared with real ones on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, cache_utils

from moetool.simulation.caches.kinds import RESIDUAL_LENGTH, CacheDtype, CacheKind, CachePlan
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from tests.families.tiny.configs import build_config
from tests.simulation.memory.memory_runs import (
    Summary,
    generate_on_cpu,
    set_up,
    summarize,
    until_last_call,
)
from tests.simulation.skeletons import build_family_skeleton

LENGTHS = {"num_prompt_tokens": 12, "num_new_tokens": 4}
# Versions of transformers before 5.24 have no fp8.
FORMATS = [
    dtype
    for dtype in CacheDtype
    if dtype is not CacheDtype.FP8 or hasattr(cache_utils, "Fp8QuantizedLayer")
]
IN_FP8 = [CachePlan(CacheKind.QUANTIZED, dtype) for dtype in FORMATS if dtype is CacheDtype.FP8]
GROUP_SIZE = 64
# Of the tiny OLMoE: layers, heads of keys, numbers in a key.
NUM_LAYERS, NUM_KEY_HEADS, WIDTH = 4, 2, 16


def build_run(family: str = "olmoe", **options: Any) -> MemoryRun:
    return MemoryRun(set_up(build_family_skeleton(family)), RunOptions(**options))


def count_births(summary: Summary) -> Counter[tuple[tuple[str, str], int]]:
    """Return how often each place took a block of each size."""
    return Counter((each.origin, each.num_bytes) for each in summary.happenings if each.num_bytes)


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_size": 2, "cache": plan} for plan in IN_FP8),
        *({"num_beams": 2, "cache": plan} for plan in IN_FP8),
        {"batch_size": 2, "num_return_sequences": 3},
        {"batch_size": 2, "num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 2, "cache": CachePlan(CacheKind.STATIC)},
    ],
)
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_a_real_run_takes_the_same_blocks(family: str, options: dict[str, Any]) -> None:
    model = set_up(AutoModelForCausalLM.from_config(build_config(family)))
    simulated, real = (
        summarize(until_last_call(timeline), with_numbers=False)
        for timeline in (
            build_run(family, **options).generate(**LENGTHS),
            generate_on_cpu(model, RunOptions(**options), **LENGTHS),
        )
    )
    assert simulated.cache_bytes == real.cache_bytes
    assert not count_births(simulated) - count_births(real)
    # A search makes one mask on the host, by ones, zeros and a concatenation.
    on_host = count_births(real) - count_births(simulated)
    num_on_host = 3 if options.get("num_beams", 1) > 1 else 0
    assert sum(on_host.values()) == num_on_host
    assert {name for (name, _), _ in on_host} <= {"ones", "zeros", "cat"}


@pytest.mark.parametrize("dtype", FORMATS)
def test_stored_bytes_are_those_of_the_format(dtype: CacheDtype) -> None:
    run = build_run(batch_size=2, cache=CachePlan(CacheKind.QUANTIZED, dtype))
    (call,) = run.generate(num_prompt_tokens=12, num_new_tokens=1).calls
    numbers = 2 * NUM_KEY_HEADS * 12 * WIDTH
    # A scale and a zero for each group, in the dtype of keys, or one scale for all.
    scales = 4 if dtype is CacheDtype.FP8 else numbers // GROUP_SIZE * 2 * 4
    assert call.cache_bytes == 2 * NUM_LAYERS * (numbers * dtype.num_bits // 8 + scales)


@pytest.mark.parametrize("num_before", [0, 3, RESIDUAL_LENGTH - 2, RESIDUAL_LENGTH + 5])
def test_all_tokens_are_quantized_again_whenever_enough_are_not(num_before: int) -> None:
    run = build_run(cache=CachePlan(CacheKind.QUANTIZED, CacheDtype.INT4))
    timeline = run.generate(num_prompt_tokens=8, num_new_tokens=5, num_tokens_before=num_before)
    kept = [call.cache_bytes for call in timeline.calls]
    # Of one token: 4 bits for each number, and a scale and a zero for every 64; or 4 bytes.
    numbers = 2 * NUM_LAYERS * NUM_KEY_HEADS * WIDTH
    small, whole = numbers // 2 + numbers // GROUP_SIZE * 2 * 4, numbers * 4
    expected, num_residual = [], 0
    for num_steps in range(num_before + 5):
        num_residual = (num_residual + 1) % RESIDUAL_LENGTH if num_steps else 0
        num_quantized = 8 + num_steps - num_residual
        expected.append(num_quantized * small + num_residual * whole)
    assert kept == expected[num_before:]


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", [CacheKind.OFFLOADED, CacheKind.OFFLOADED_STATIC])
def test_an_offloaded_cache_is_on_the_host_except_for_the_next_layer(
    kind: CacheKind, num_beams: int
) -> None:
    on_gpu = CacheKind.STATIC if kind is CacheKind.OFFLOADED_STATIC else CacheKind.DYNAMIC
    whole, offloaded = (
        build_run(num_beams=num_beams, cache=CachePlan(each)).generate(**LENGTHS)
        for each in (on_gpu, kind)
    )
    # A static cache counts the tokens of each layer, 8 bytes, on the GPU.
    counts = 8 * NUM_LAYERS if on_gpu is CacheKind.STATIC else 0
    for before, after in zip(whole.calls, offloaded.calls, strict=True):
        keys_and_values = before.cache_bytes - counts
        assert after.host_cache_bytes == keys_and_values * (NUM_LAYERS - 1) // NUM_LAYERS
        assert after.cache_bytes == keys_and_values // NUM_LAYERS + counts
    assert {
        offloaded.origins[event.origin].operation
        for event in offloaded.events
        if event.num_bytes > 0 and offloaded.origins[event.origin].is_on_side
    } == {"_to_copy"}


@pytest.mark.parametrize("num_beams", [2, 3])
def test_beams_keep_the_cache_of_as_many_sequences(num_beams: int) -> None:
    beams = build_run(batch_size=2, num_beams=num_beams).generate(**LENGTHS)
    sequences = build_run(batch_size=2 * num_beams).generate(**LENGTHS)
    kept = [[call.cache_bytes for call in timeline.calls] for timeline in (beams, sequences)]
    assert kept[0] == kept[1]


def test_reordered_keys_count_as_cache() -> None:
    timeline = build_run(num_beams=2).generate(**LENGTHS)
    born = {event.block: event for event in timeline.events if event.num_bytes >= 0}
    operations = {
        timeline.origins[born[block].origin].operation
        for call in timeline.calls
        for block in call.cache_blocks
    }
    assert operations == {"cat", "index_select"}


def test_room_for_all_tokens_is_taken_at_the_start_of_a_search() -> None:
    run = build_run(num_beams=2)
    start = run.generate(num_prompt_tokens=12, num_new_tokens=3, num_tokens_after=5)
    whole = run.generate(num_prompt_tokens=12, num_new_tokens=8)
    assert len(start.calls) == 3
    end = start.calls[2].end_event
    assert start.events[:end] == whole.events[:end]


def test_a_skeleton_is_left_as_it_was() -> None:
    skeleton: Any = set_up(build_family_skeleton("olmoe"))
    before = dict(vars(skeleton))
    for kind in (CacheKind.OFFLOADED, CacheKind.QUANTIZED):
        dtype = CacheDtype.INT4 if kind is CacheKind.QUANTIZED else None
        MemoryRun(skeleton, RunOptions(cache=CachePlan(kind, dtype))).generate(**LENGTHS)
    assert vars(skeleton) == before
    assert torch.is_grad_enabled()
