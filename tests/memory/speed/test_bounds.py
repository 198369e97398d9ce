"""Bounds on time: Mixtral by hand, and what is left out where it can't be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.catalogue.gpus import Gpu, find_gpu
from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config
from moetool.memory.answers.figures import Phase
from moetool.memory.answers.on_gpus import SpeedBound
from moetool.memory.scenario import Scenario, Task
from moetool.memory.speed.bounds import bound_speed
from moetool.memory.speed.experts_touched import Routing, assume_uniform_routing, find_choices
from tests.memory.loaded.packed import build_in, pack_queries
from tests.simulation.skeletons import build_family_skeleton

H200_BANDWIDTH, H200_PEAK = 4.8e12, 989.5e12

# Mixtral-8x7B by hand: 32 layers of width 4096; 32 heads of 128, 8 of them for keys and values; 8
# experts of width 14336, 2 of them chosen; a vocabulary of 32,000.
ATTENTION = 4096 * 128 * (32 + 8 + 8 + 32)
EXPERT = 3 * 4096 * 14336
ROUTER = 4096 * 8
HEAD = 4096 * 32_000
NORMS = 32 * 2 * 4096 + 4096
CACHE_BYTES = 32 * 2 * 8 * 128 * 2048 * 2


@cache
def build_mixtral() -> PreTrainedModel:
    name = "mixtral-8x7b"
    config = make_config(
        read_published_config(name), name=name, label=name, code=None, trust_remote_code=False
    )
    return build_whole_skeleton(config, dtype=torch.bfloat16)


@cache
def build_tiny(family: str = "mixtral", dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    return build_in(family, dtype)


def make_gpu(
    *,
    bandwidth: float | None = 1e9,
    bf16_peak: float | None = None,
    fp16_peak: float | None = None,
    fp8_peak: float | None = None,
) -> Gpu:
    return replace(
        find_gpu("24GiB"),
        bandwidth_bytes_per_s=bandwidth,
        bf16_flops_per_s=bf16_peak,
        fp16_flops_per_s=fp16_peak,
        fp8_flops_per_s=fp8_peak,
    )


def bound(
    skeleton: PreTrainedModel,
    gpu: Gpu | None = None,
    *,
    scenario: Scenario | None = None,
    cache_bytes: int = 0,
    routing: Routing | None = None,
    unquantized: PreTrainedModel | None = None,
) -> SpeedBound:
    plain = RoutedSkeleton.of(unquantized or skeleton)
    return bound_speed(
        skeleton,
        scenario or Scenario(),
        gpu or make_gpu(bf16_peak=1e12),
        cache_bytes=cache_bytes,
        choices=find_choices(plain),
        routing=routing,
        unquantized=plain,
    )


def times_of(speed: SpeedBound) -> Mapping[str, float | str | None]:
    return {
        "prefill": speed.prefill_s,
        "prefill by": speed.prefill_is_bound_by,
        "decode": speed.decode_s_per_token,
        "decode by": speed.decode_is_bound_by,
    }


def test_a_token_of_mixtral_takes_as_long_as_reading_what_it_runs() -> None:
    speed = bound(build_mixtral(), find_gpu("h200"), cache_bytes=CACHE_BYTES)
    active = 32 * (ATTENTION + ROUTER + 2 * EXPERT) + NORMS + HEAD
    num_bytes = 2 * active + CACHE_BYTES
    assert speed.decode_read_bytes == num_bytes
    assert speed.decode_s_per_token == pytest.approx(num_bytes / H200_BANDWIDTH, rel=1e-12)
    assert speed.decode_is_bound_by == "memory"
    assert speed.decode_weight_flops == 2 * (active - NORMS)
    assert speed.experts_touched_per_layer == 2
    assert (speed.routing, speed.notes) == ("uniform", ())


def test_a_prompt_of_mixtral_takes_as_long_as_its_products() -> None:
    speed = bound(build_mixtral(), find_gpu("h200"), scenario=Scenario(num_prompt_tokens=4096))
    flops = 4096 * 2 * 32 * (ATTENTION + ROUTER + 2 * EXPERT) + 2 * HEAD
    assert speed.prefill_weight_flops == flops
    assert speed.prefill_s == pytest.approx(flops / H200_PEAK, rel=1e-12)
    assert speed.prefill_is_bound_by == "compute"
    assert speed.prefill_read_bytes == 2 * (32 * (ATTENTION + ROUTER + 8 * EXPERT) + NORMS + HEAD)


def test_a_batch_reads_the_experts_that_its_sequences_touch_and_weights_once() -> None:
    scenario = Scenario(batch_size=2, num_prompt_tokens=1)
    speed = bound(build_mixtral(), find_gpu("h200"), scenario=scenario, cache_bytes=1000)
    # Of 8 experts, two tokens miss one with (3/4)^2.
    touched = 8 * 7 / 16
    assert speed.experts_touched_per_layer == touched
    read = 2 * (32 * (ATTENTION + ROUTER + touched * EXPERT) + NORMS + HEAD)
    assert speed.prefill_read_bytes == read
    assert speed.decode_read_bytes == read + 1000
    assert speed.prefill_s == pytest.approx(read / H200_BANDWIDTH, rel=1e-12)
    assert speed.prefill_is_bound_by == "memory"


def test_a_whole_forward_makes_all_logits_and_decodes_nothing() -> None:
    skeleton = build_tiny()
    generate, forward = (
        bound(skeleton, scenario=Scenario(batch_size=3, num_prompt_tokens=7, task=task))
        for task in (Task.GENERATE, Task.FORWARD)
    )
    assert generate.prefill_weight_flops is not None
    assert forward.prefill_weight_flops == generate.prefill_weight_flops + 2 * 64 * 256 * 3 * (
        7 - 1
    )
    assert forward.prefill_s is not None
    assert (forward.decode_s_per_token, forward.decode_is_bound_by) == (None, None)
    nothing = (
        forward.decode_weight_flops,
        forward.decode_read_bytes,
        forward.experts_touched_per_layer,
    )
    assert nothing == (None, None, None)


def test_the_first_new_token_needs_no_step_of_decoding() -> None:
    assert bound(build_tiny(), scenario=Scenario(num_new_tokens=1)).decode_s_per_token is None
    assert bound(build_tiny(), scenario=Scenario(num_new_tokens=2)).decode_s_per_token is not None


def test_a_model_that_does_not_generate_has_a_bound_of_its_prompt() -> None:
    speed = bound(build_tiny("openai_privacy_filter"))
    assert speed.prefill_s is not None
    assert speed.decode_s_per_token is None


@pytest.mark.parametrize("family", ["switch_transformers", "nllb-moe", "diffusion_gemma"])
def test_there_is_no_bound_with_an_encoder_or_a_canvas(family: str) -> None:
    speed = bound(build_tiny(family))
    assert set(times_of(speed).values()) == {None}
    assert speed.notes == (
        "No time bound: the model has an encoder, or doesn't decode one token at a time.",
    )


def test_there_is_no_bound_where_choices_are_unknown() -> None:
    skeleton = build_family_skeleton("mixtral")
    skeleton.model.norm.num_experts = 4
    speed = bound(skeleton, routing=Routing(prefill={}, decode={}, name="trace.parquet"))
    assert set(times_of(speed).values()) == {None}
    assert speed.routing == "trace.parquet"
    assert speed.notes == (
        "No time bound: the number of experts per token is unknown for some layers.",
    )


def test_a_recorded_routing_is_used_phase_by_phase() -> None:
    choices = find_choices(RoutedSkeleton.of(build_mixtral()))
    assert choices is not None
    decode = {layer.experts_path: np.array([1.0, 0.5, 0.5] + [0.0] * 5) for layer in choices}
    prefill = {path: np.array([1.0, 1.0] + [0.0] * 6) for path in decode}
    routing = Routing(prefill=prefill, decode=decode, name="trace.parquet", notes=("Heed this.",))
    speed = bound(build_mixtral(), scenario=Scenario(batch_size=2), routing=routing)
    shared = 32 * (ATTENTION + ROUTER) + NORMS + HEAD
    assert speed.experts_touched_per_layer == 2.5
    assert speed.decode_read_bytes == 2 * (shared + 32 * 2.5 * EXPERT)
    assert speed.prefill_read_bytes == 2 * (shared + 32 * 2 * EXPERT)
    assert (speed.routing, speed.notes) == ("trace.parquet", ("Heed this.",))


def test_none_of_a_cache_counts_that_an_indexer_picks_from() -> None:
    skeleton = build_tiny("deepseek_v32")
    without, with_cache = (bound(skeleton, cache_bytes=number) for number in (0, 10**9))
    assert without == with_cache
    assert with_cache.notes == (
        "Its attention reads only the tokens that an indexer picks, so the bound on time leaves out "
        "reading the cache.",
    )


def test_arithmetic_sets_the_time_where_reading_is_faster() -> None:
    speed = bound(build_tiny(), make_gpu(bandwidth=1e15, bf16_peak=1e3))
    assert speed.decode_weight_flops is not None
    assert speed.decode_s_per_token == pytest.approx(speed.decode_weight_flops / 1e3)
    assert speed.decode_is_bound_by == "compute"


def test_a_gpu_without_bf16_computes_in_fp16() -> None:
    with_bf16 = bound(build_tiny(), make_gpu(bandwidth=1e15, bf16_peak=1e9))
    without = bound(build_tiny(), make_gpu(bandwidth=1e15, fp16_peak=1e9))
    assert with_bf16 == without
    assert with_bf16.prefill_is_bound_by == "compute"


def test_an_unknown_peak_leaves_the_time_of_reading() -> None:
    gpu = find_gpu("dgx-spark")
    assert gpu.bf16_flops_per_s is None
    speed = bound(build_tiny(), gpu)
    assert speed.prefill_read_bytes is not None
    assert gpu.bandwidth_bytes_per_s is not None
    assert speed.prefill_s == speed.prefill_read_bytes / gpu.bandwidth_bytes_per_s
    assert (speed.prefill_is_bound_by, speed.decode_is_bound_by) == ("memory", "memory")
    assert speed.notes == (
        f"The peak of {gpu.title} in 16 bits is unknown: the bound on time is that of reading alone.",
    )


def test_an_unknown_bandwidth_leaves_the_time_of_computing() -> None:
    speed = bound(build_tiny(), make_gpu(bandwidth=None, bf16_peak=1e12))
    assert (speed.prefill_is_bound_by, speed.decode_is_bound_by) == ("compute", "compute")
    assert speed.notes == (
        "The bandwidth of custom GPU of 24 GiB is unknown: the bound on time is that of computing "
        "alone.",
    )


def test_an_amount_of_memory_alone_gives_bytes_and_flops_but_not_time() -> None:
    speed = bound(build_tiny(), find_gpu("24GiB"))
    assert set(times_of(speed).values()) == {None}
    assert speed.decode_weight_flops is not None
    assert speed.decode_read_bytes is not None
    assert speed.notes == (
        "No time bound: both bandwidth and peak of custom GPU of 24 GiB are unknown.",
    )


def test_float32_is_timed_as_16_bits() -> None:
    gpu = make_gpu(bandwidth=1e15, bf16_peak=1e9)
    in_32_bits = bound(build_tiny(dtype=torch.float32), gpu)
    assert times_of(in_32_bits) == times_of(bound(build_tiny(), gpu))
    assert in_32_bits.notes == (
        "Products in float32 are timed at the peak in 16 bits, although float32 is much slower.",
    )


def test_products_of_int8_take_no_time() -> None:
    packed = build_in("mixtral", torch.bfloat16)
    pack_queries(packed, dtype=torch.int8, num_scales=1)
    gpu = make_gpu(bandwidth=1e15, bf16_peak=1e9)
    plain, in_int8 = bound(build_tiny(), gpu), bound(packed, gpu, unquantized=build_tiny())
    assert plain.decode_s_per_token is not None
    assert in_int8.decode_s_per_token is not None
    saved = plain.decode_s_per_token - in_int8.decode_s_per_token
    assert saved == pytest.approx(4 * 2 * 64 * 64 / 1e9)
    assert in_int8.decode_weight_flops == plain.decode_weight_flops
    assert in_int8.notes == (
        "Products of weights that are held as int8 are not timed: the speed of custom GPU of 24 GiB in int8 is "
        "unknown.",
    )


@pytest.mark.parametrize(("fp8_peak", "speedup"), [(4e9, 4), (None, 1)])
def test_fp8_is_timed_at_its_peak_or_that_of_16_bits_without_one(
    fp8_peak: float | None, speedup: float
) -> None:
    gpu = make_gpu(bandwidth=1e15, bf16_peak=1e9, fp8_peak=fp8_peak)
    speed = bound(build_tiny(dtype=torch.float8_e4m3fn), gpu)
    plain = bound(build_tiny(), gpu)
    assert speed.prefill_s is not None
    assert plain.prefill_s is not None
    assert speed.prefill_s == pytest.approx(plain.prefill_s / speedup)


@given(
    batch_size=st.integers(1, 64),
    num_prompt_tokens=st.integers(1, 4096),
    cache_bytes=st.integers(0, 10**10),
)
@settings(max_examples=25, deadline=None)
def test_a_larger_scenario_is_never_faster(
    batch_size: int, num_prompt_tokens: int, cache_bytes: int
) -> None:
    small = Scenario(batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
    large = replace(small, batch_size=2 * batch_size)
    one, two = (
        bound(build_tiny(), scenario=scenario, cache_bytes=number)
        for scenario, number in ((small, cache_bytes), (large, 2 * cache_bytes))
    )
    for name in ("prefill_s", "decode_s_per_token"):
        # Weights are shared by the batch, so that twice the work takes less than twice as long.
        assert getattr(one, name) <= getattr(two, name) <= 2 * getattr(one, name) * (1 + 1e-9)


def test_uniform_routing_is_assumed_without_a_trace() -> None:
    choices = find_choices(RoutedSkeleton.of(build_tiny()))
    assert choices is not None
    given_routing = assume_uniform_routing(choices)
    assert bound(build_tiny(), routing=given_routing) == bound(build_tiny())
    touched = given_routing.expect_touched(Phase.DECODE, num_tokens=5).mean
    scenario = Scenario(batch_size=5)
    assert bound(build_tiny(), scenario=scenario).experts_touched_per_layer == touched
