"""Lower bounds on the time of a prompt and of a token, by a GPU's bandwidth and arithmetic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.memory.answers.figures import Phase
from moetool.memory.answers.on_gpus import SpeedBound
from moetool.memory.scenario import Scenario, Task
from moetool.memory.speed.experts_touched import (
    UNIFORM,
    Routing,
    assume_uniform_routing,
)
from moetool.memory.speed.step_weights import (
    Arithmetic,
    ParameterRoles,
    ProductFlops,
    ReadBytes,
    count_product_flops,
    count_read_bytes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.anatomy.routing.moe_layers import MoeLayer
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
    from moetool.catalogue.gpus import Gpu

_COMPUTE, _MEMORY = "compute", "memory"
_NO_PEAK = "The peak of {} in 16 bits is unknown: the bound on time is that of reading alone."
_NO_BANDWIDTH = "The bandwidth of {} is unknown: the bound on time is that of computing alone."
_NOTHING_KNOWN = "No time bound: both bandwidth and peak of {} are unknown."
_INT8_IS_FREE = (
    "Products of weights that are held as int8 are not timed: the speed of {} in int8 is unknown."
)
_FLOAT32_AS_16_BITS = (
    "Products in float32 are timed at the peak in 16 bits, although float32 is much slower."
)
_PARTLY_READ = (
    "Its attention reads only the tokens that an indexer picks, so the bound on time leaves out "
    "reading the cache."
)
_NOT_ONE_BY_ONE = "No time bound: the model has an encoder, or doesn't decode one token at a time."
_UNKNOWN_CHOICES = "No time bound: the number of experts per token is unknown for some layers."


@dataclass(frozen=True)
class _LeastTime:
    """A lower bound on the time of a phase.

    Attributes:
        seconds: The bound; None if nothing is known about the GPU.
        is_bound_by: The resource that sets the bound.
    """

    seconds: float | None
    is_bound_by: str | None


def bound_speed(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    gpu: Gpu,
    *,
    cache_bytes: int,
    choices: Mapping[MoeLayer, int] | None,
    routing: Routing | None = None,
    unquantized: RoutedSkeleton,
) -> SpeedBound:
    """Return lower bounds on the time of a batch's prefill, and of one of its decoding steps.

    Each is the longer of two times: all that has to be read once over the memory's bandwidth, and
    all that has to be multiplied over the arithmetic's peak, after the roofline of Williams,
    Waterman and Patterson, 2009. They hold for transformers and for any faster engine that runs
    every layer on every token, in the arithmetic that the weights are stored for, on one GPU, and
    that reads its weights from memory anew for every step. So they leave out whatever some engine
    can avoid:

    - FLOPs are two for each weight that a token is multiplied by; the head's count only for the last
      position of a prompt. Attention between tokens isn't counted: a kernel skips masked pairs, and
      the cost of latent attention depends on the order of its products (DeepSeek-V3 in transformers
      spends 4.3 TFLOPs on a token, nearly all of it on expanding its cache).
    - Bytes are the weights as the skeleton holds them, without towers and without tables that ids
      are looked up in, with routed experts counted by how many distinct ones the tokens touch; in
      decoding, also the cache. Activations and writes aren't counted, nor are copies of experts.

    Where more than one token chooses experts, the bound is one on the mean time under `routing`.
    Pads count as tokens.

    Args:
        skeleton: The model on the meta device, quantized as it is loaded.
        gpu: The GPU, whether or not the scenario fits.
        cache_bytes: The filled part of the cache, for the whole batch, when a step begins.
        choices: The number of experts a token chooses in each routed layer; None if unknown.
        routing: The experts that tokens choose; None for uniform routing.
        unquantized: The same model with plain weights; the skeleton itself if its weights are plain.
    """
    plain = unquantized.model
    if _has_two_stacks(plain) or choices is None:
        return SpeedBound(
            routing=routing.name if routing else UNIFORM,
            notes=(_UNKNOWN_CHOICES if choices is None else _NOT_ONE_BY_ONE,),
        )
    routing = routing or assume_uniform_routing(choices)
    roles = ParameterRoles(unquantized, choices)
    reads = count_read_bytes(skeleton, roles)
    flops = count_product_flops(skeleton, roles, choices)
    bound = _bound_prefill(scenario, gpu, reads=reads, flops=flops, routing=routing)
    if not _decodes(plain, scenario):
        return bound
    picks = _picks_what_it_reads(plain)
    num_tokens = scenario.num_sequences
    touched = routing.expect_touched(Phase.DECODE, num_tokens=num_tokens)
    decode_flops = flops.sum_up(num_tokens=num_tokens, num_logits=num_tokens)
    decode_bytes = reads.sum_up(touched.per_layer) + (0 if picks else cache_bytes)
    decode = _find_least_time(decode_flops, decode_bytes, gpu)
    return replace(
        bound,
        decode_s_per_token=decode.seconds,
        decode_is_bound_by=decode.is_bound_by,
        decode_weight_flops=sum(decode_flops.values()),
        decode_read_bytes=decode_bytes,
        experts_touched_per_layer=touched.mean,
        notes=(*bound.notes, *([_PARTLY_READ] if picks else [])),
    )


def _bound_prefill(
    scenario: Scenario,
    gpu: Gpu,
    *,
    reads: ReadBytes,
    flops: ProductFlops,
    routing: Routing,
) -> SpeedBound:
    """Return the bounds for the prompt alone."""
    num_tokens = scenario.num_sequences * scenario.num_prompt_tokens
    has_all_logits = scenario.task is Task.FORWARD
    prefill_flops = flops.sum_up(
        num_tokens=num_tokens, num_logits=num_tokens if has_all_logits else scenario.num_sequences
    )
    touched = routing.expect_touched(Phase.PREFILL, num_tokens=num_tokens)
    prefill_bytes = reads.sum_up(touched.per_layer)
    prefill = _find_least_time(prefill_flops, prefill_bytes, gpu)
    return SpeedBound(
        routing=routing.name,
        prefill_s=prefill.seconds,
        prefill_is_bound_by=prefill.is_bound_by,
        prefill_weight_flops=sum(prefill_flops.values()),
        prefill_read_bytes=prefill_bytes,
        notes=(*routing.notes, *_note_gpu(gpu, prefill_flops)),
    )


def _has_two_stacks(model: PreTrainedModel) -> bool:
    # DiffusionGemma reads the prompt in a separate stack too, and isn't an encoder-decoder.
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def _decodes(model: PreTrainedModel, scenario: Scenario) -> bool:
    """Return whether a token is run after the prompt, which yields the first new one by itself."""
    is_step_left = scenario.task is not Task.FORWARD and scenario.num_new_tokens > 1
    return is_step_left and model.can_generate()


def _picks_what_it_reads(model: PreTrainedModel) -> bool:
    return any("Indexer" in type(module).__name__ for module in model.modules())


def _find_least_time(flops: Mapping[Arithmetic, int], num_bytes: int, gpu: Gpu) -> _LeastTime:
    seconds: dict[str, float] = {}
    peaks = {kind: _find_peak(gpu, kind) for kind, number in flops.items() if number}
    if None not in peaks.values():
        seconds[_COMPUTE] = sum(flops[kind] / peak for kind, peak in peaks.items() if peak)
    if gpu.bandwidth_bytes_per_s is not None:
        seconds[_MEMORY] = num_bytes / gpu.bandwidth_bytes_per_s
    longest = max(seconds, key=lambda name: seconds[name], default=None)
    return _LeastTime(None if longest is None else seconds[longest], longest)


def _find_peak(gpu: Gpu, kind: Arithmetic) -> float | None:
    """Return the GPU's peak in FLOPs per second; infinite where a peak is never known."""
    if kind is Arithmetic.INT8:
        return float("inf")
    # Without bf16 or fp8 tensor cores, such weights are converted to a dtype that the GPU computes in.
    in_16_bits = gpu.bf16_flops_per_s or gpu.fp16_flops_per_s
    return gpu.fp8_flops_per_s or in_16_bits if kind is Arithmetic.FP8 else in_16_bits


def _note_gpu(gpu: Gpu, flops: Mapping[Arithmetic, int]) -> list[str]:
    has_peak = all(_find_peak(gpu, kind) is not None for kind, number in flops.items() if number)
    if gpu.bandwidth_bytes_per_s is None:
        return [(_NO_BANDWIDTH if has_peak else _NOTHING_KNOWN).format(gpu.title)]
    notes = [] if has_peak else [_NO_PEAK.format(gpu.title)]
    if flops[Arithmetic.INT8]:
        notes.append(_INT8_IS_FREE.format(gpu.title))
    if 2 * flops[Arithmetic.FLOAT32] > sum(flops.values()):
        notes.append(_FLOAT32_AS_16_BITS)
    return notes
