"""The least time that a GPU's bandwidth and arithmetic leave for a prompt and for a token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.memory.result import Phase, SpeedBound
from moetool.memory.scenario import Scenario, Task
from moetool.memory.speed.experts_touched import (
    UNIFORM,
    Routing,
    assume_uniform_routing,
    find_choices,
)
from moetool.memory.speed.step_weights import (
    Arithmetic,
    ProductFlops,
    ReadBytes,
    count_product_flops,
    count_read_bytes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.catalogue.gpus import Gpu

_COMPUTE, _MEMORY = "compute", "memory"
_NO_PEAK = "No peak in {} is known of {}: the bound on time is that of reading alone."
_NO_BANDWIDTH = "No bandwidth is known of {}: the bound on time is that of computing alone."
_NOTHING_KNOWN = "Neither bandwidth nor peak is known of {}: there is no bound on time."
_INT8_IS_FREE = "Products of weights that are held as int8 are not timed: how fast {} computes them isn't known."
_FLOAT32_AS_16_BITS = (
    "Products in float32 are timed at the peak in 16 bits, which float32 stays well below."
)
_PARTLY_READ = (
    "Its attention reads only what an indexer picks, so none of the cache counts as read in the "
    "bound on time."
)
_NOT_ONE_BY_ONE = (
    "There is no bound on time: it has an encoder, or doesn't decode token after token."
)
_UNKNOWN_CHOICES = (
    "There is no bound on time: how many experts its tokens choose isn't known of every layer."
)


@dataclass(frozen=True)
class _LeastTime:
    """What a phase can't be faster than.

    Attributes:
        seconds: None if nothing is known of the GPU.
        is_bound_by: What takes that long.
    """

    seconds: float | None
    is_bound_by: str | None


def bound_speed(
    skeleton: PreTrainedModel,
    scenario: Scenario,
    gpu: Gpu,
    *,
    cache_bytes: int,
    routing: Routing | None = None,
    unquantized: PreTrainedModel | None = None,
) -> SpeedBound:
    """Return lower bounds on the time of a batch's prefill, and of one step of its decoding.

    Each is the longer of two times: all that has to be read once over the memory's bandwidth, and
    all that has to be multiplied over the arithmetic's peak, after the roofline of Williams,
    Waterman and Patterson, 2009. They hold for transformers and for any faster engine, as long as
    it runs every layer on every token, in the arithmetic that the weights are stored for, on one
    GPU, and reads its weights from memory anew for every step. So they leave out what some engine
    does without:

    - FLOPs are two for each weight that a token is multiplied by, the head's for the last position
      of a prompt alone. Attention between tokens isn't counted: a kernel skips masked pairs, and
      latent attention is cheaper or dearer by the order of its products (DeepSeek-V3 in
      transformers spends 4.3 TFLOPs on a token, nearly all in expanding its cache).
    - Bytes are the weights as the skeleton holds them, without towers and without tables that ids
      are looked up in, routed experts by how many distinct ones the tokens touch; and in decoding
      the cache. Activations and what is written aren't counted, nor copies of experts.

    Where more than one token chooses experts, the bound is one on the mean time under `routing`.
    Pads count as tokens.

    Args:
        skeleton: The model on the meta device, quantized as it is loaded.
        scenario: What is run.
        gpu: What it is run on, as if it had the room.
        cache_bytes: What the step finds in the cache, of the whole batch: filled slots alone.
        routing: How tokens choose experts; None for uniformly.
        unquantized: The same model with plain weights; None if the skeleton's are.
    """
    plain = skeleton if unquantized is None else unquantized
    choices = find_choices(plain)
    if _has_two_stacks(plain) or choices is None:
        return SpeedBound(
            gpu=gpu.id,
            routing=routing.name if routing else UNIFORM,
            notes=(_UNKNOWN_CHOICES if choices is None else _NOT_ONE_BY_ONE,),
        )
    routing = routing or assume_uniform_routing(choices)
    reads = count_read_bytes(skeleton, plain, choices)
    flops = count_product_flops(skeleton, plain, choices)
    bound = _bound_prefill(scenario, gpu, reads=reads, flops=flops, routing=routing)
    if not _decodes(plain, scenario):
        return bound
    picks = _picks_what_it_reads(plain)
    num_tokens = scenario.batch_size
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
    """Return the bound of the prompt alone."""
    num_tokens = scenario.batch_size * scenario.num_prompt_tokens
    has_all_logits = scenario.task is Task.FORWARD
    prefill_flops = flops.sum_up(
        num_tokens=num_tokens, num_logits=num_tokens if has_all_logits else scenario.batch_size
    )
    touched = routing.expect_touched(Phase.PREFILL, num_tokens=num_tokens)
    prefill_bytes = reads.sum_up(touched.per_layer)
    prefill = _find_least_time(prefill_flops, prefill_bytes, gpu)
    return SpeedBound(
        gpu=gpu.id,
        routing=routing.name,
        prefill_s=prefill.seconds,
        prefill_is_bound_by=prefill.is_bound_by,
        prefill_weight_flops=sum(prefill_flops.values()),
        prefill_read_bytes=prefill_bytes,
        notes=(*routing.notes, *_note_gpu(gpu, prefill_flops)),
    )


def _has_two_stacks(model: PreTrainedModel) -> bool:
    # DiffusionGemma, too, reads the prompt in a stack of its own, and isn't an encoder-decoder.
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def _decodes(model: PreTrainedModel, scenario: Scenario) -> bool:
    """Return whether a token is run after the prompt: the first new one comes of the prompt."""
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
    """Return FLOPs per second that the GPU can't exceed; infinite where no peak can be told."""
    if kind is Arithmetic.INT8:
        return float("inf")
    # Without bf16 or fp8 tensor cores, weights in them are converted to what there is.
    in_16_bits = gpu.bf16_flops_per_s or gpu.fp16_flops_per_s
    return gpu.fp8_flops_per_s or in_16_bits if kind is Arithmetic.FP8 else in_16_bits


def _note_gpu(gpu: Gpu, flops: Mapping[Arithmetic, int]) -> list[str]:
    has_peak = all(_find_peak(gpu, kind) is not None for kind, number in flops.items() if number)
    if gpu.bandwidth_bytes_per_s is None:
        return [(_NO_BANDWIDTH if has_peak else _NOTHING_KNOWN).format(gpu.title)]
    notes = [] if has_peak else [_NO_PEAK.format("16 bits", gpu.title)]
    if flops[Arithmetic.INT8]:
        notes.append(_INT8_IS_FREE.format(gpu.title))
    if 2 * flops[Arithmetic.FLOAT32] > sum(flops.values()):
        notes.append(_FLOAT32_AS_16_BITS)
    return notes
