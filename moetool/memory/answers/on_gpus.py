"""Answers about GPUs, as reports show them: fits, limits, sharing, offloading and speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moetool.plain import show_fields
from moetool.quantized.kinds import Quantization


@dataclass(frozen=True)
class Fit:
    """Whether a run fits on a kind of GPU.

    Attributes:
        gpu: The GPU's id.
        memory_bytes: The GPU's memory.
        quantization: The storage of the weights.
        num_gpus: The number of GPUs needed with transformers' `device_map="auto"`, whose unit is the
            decoder layer; None if no number is enough, or if it is unknown.
        fits: Whether one GPU is enough: the run completes there, even if torch's allocator has to
            give back reserved memory on the way. None if unknown.
        headroom_bytes: Memory left on one GPU. If the run doesn't fit, it is negative: the part of
            the allocator's requests that one GPU lacks.
    """

    gpu: str
    memory_bytes: int
    quantization: Quantization
    num_gpus: int | None
    fits: bool | None
    headroom_bytes: int | None


def find_smallest(fits: Iterable[Fit]) -> Fit | None:
    """Return the fit with the least memory among those that are enough; None if none is."""
    return min((fit for fit in fits if fit.fits), key=lambda fit: fit.memory_bytes, default=None)


@dataclass(frozen=True)
class Limits:
    """The largest scenarios that fit on one GPU, with all other options unchanged.

    Attributes:
        largest_prompt_tokens: The longest prompt at this batch size; 0 if none fits. A simulation
            confirmed it.
        largest_batch_size: The most sequences at this prompt length; 0 if none fits. A simulation
            confirmed it.
        is_whole_context: Whether only the model's context limits the prompt.
        gpu: The GPU's id, once it is part of an estimate.
    """

    largest_prompt_tokens: int
    largest_batch_size: int
    is_whole_context: bool
    gpu: str | None = None


@dataclass(frozen=True)
class RankBytes:
    """The weights that each of several GPUs holds under one sharing strategy.

    Attributes:
        way: The strategy: `device_map`, `tensor_parallel` or `expert_parallel`.
        num_gpus: The number of GPUs that share the weights.
        weights_bytes: The weights of each GPU, in order.
        num_layers: The number of decoder layers on each GPU, for `device_map`; None for the others,
            where each GPU holds a part of every layer.
        replicated_bytes: The weights that every GPU holds in full; None for `device_map`.
        reason: Why this strategy can't be used; None if it can.
    """

    way: str
    num_gpus: int
    weights_bytes: tuple[int, ...]
    num_layers: tuple[int, ...] | None = None
    replicated_bytes: int | None = None
    reason: str | None = None

    __repr__ = show_fields


@dataclass(frozen=True)
class ExpertCache:
    """Single experts of each layer on the GPU, in an engine that moves the others one by one.

    Figures are of decoding one sequence, one token at a time.

    Attributes:
        routing: `uniform`, or the name of the trace that the figures are from.
        experts_per_layer: Experts of each layer that fit next to everything else.
        gpu_bytes: Their size in all layers.
        uniform_hit_rate: Share of needed experts that are there with a uniform random router.
        uniform_transfer_bytes_per_token: Experts moved to the GPU for each token, then.
        static_hit_rate: The share in the trace, with the experts that other prompts used most; None
            without a trace, or with a single prompt.
        static_transfer_bytes_per_token: Experts moved to the GPU for each token, then.
        lru_hit_rate: The share in the trace, with the experts that were used last.
        lru_transfer_bytes_per_token: Experts moved to the GPU for each token, then.
    """

    routing: str
    experts_per_layer: int
    gpu_bytes: int
    uniform_hit_rate: float
    uniform_transfer_bytes_per_token: int
    static_hit_rate: float | None = None
    static_transfer_bytes_per_token: int | None = None
    lru_hit_rate: float | None = None
    lru_transfer_bytes_per_token: int | None = None


@dataclass(frozen=True)
class Offload:
    """Routed experts in the host's memory, everything else on the GPU.

    transformers moves the experts of one layer after another to the GPU, which needs room for them.
    Other engines, such as llama.cpp, compute these experts on the host and need no such room.

    Attributes:
        num_offloaded_layers: The number of layers whose routed experts have to leave the GPU for
            the rest to fit with transformers.
        num_moe_layers: Layers with routed experts.
        gpu_bytes: Memory on the GPU at the peak with transformers, including the experts at work.
        host_bytes: Memory that the host then needs.
        transfer_bytes_per_token: Traffic on the bus for each decoded token with transformers, which
            moves every expert of a layer.
        computed_on_host_bytes_per_token: Memory that the host reads for each token where an engine
            computes experts there; only activations cross the bus. None if unknown.
        flags: Settings by engine. Engines with which the run doesn't fit are left out.
        fits: Whether the run fits with transformers.
        num_host_computed_layers: The number of layers whose routed experts have to leave the GPU
            with engines that compute them on the host, if they need as much memory as transformers
            for everything else.
        fits_computed_on_host: Whether the run fits with those engines.
        gpu: The GPU's id, once it is part of an estimate.
        expert_cache: Single experts that stay on the GPU; None if all or none fit, if several
            sequences are decoded, or if the number of experts that a token chooses is unknown.
        transfer_s_per_token: The least time of a token with transformers: its traffic over the
            measured bandwidth from ordinary memory, where accelerate keeps what is offloaded; None
            if the bus wasn't measured, or if nothing has to move.
        pinned_transfer_s_per_token: The same for an engine that keeps it in page-locked memory.
        notes: Why something is unknown.
    """

    num_offloaded_layers: int
    num_moe_layers: int
    gpu_bytes: int
    host_bytes: int
    transfer_bytes_per_token: int
    computed_on_host_bytes_per_token: int | None
    flags: Mapping[str, str]
    fits: bool
    num_host_computed_layers: int
    fits_computed_on_host: bool
    gpu: str | None = None
    expert_cache: ExpertCache | None = None
    transfer_s_per_token: float | None = None
    pinned_transfer_s_per_token: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeenSpeed:
    """Recorded runs on a kind of GPU, and how far above their own lower bounds they were.

    Attributes:
        least_over_bound: The shortest time over its bound.
        most_over_bound: The longest time over its bound.
        num_geometries: The number of configurations that ran.
        num_runs: The number of runs; each is the median of several passes.
        batch_size: Sequences at once in these runs.
        num_prompt_tokens: Tokens of each sequence's prompt in these runs.
    """

    least_over_bound: float
    most_over_bound: float
    num_geometries: int
    num_runs: int
    batch_size: int
    num_prompt_tokens: int


@dataclass(frozen=True)
class SpeedBound:
    """Lower bounds on time that follow from a GPU's own limits: no run can be faster.

    Attributes:
        routing: `uniform`, or the name of the trace that recorded how tokens choose experts.
        prefill_s: Time for the prompts of the whole batch; None if unknown.
        decode_s_per_token: Time for one decoding step of the whole batch; None if it is unknown or
            if nothing is decoded.
        prefill_is_bound_by: `compute` or `memory`.
        decode_is_bound_by: `compute` or `memory`.
        prefill_weight_flops: FLOPs of the products with weights, for the prompts of the batch.
        decode_weight_flops: FLOPs of the products with weights, for one step.
        prefill_read_bytes: The least that the prompts of the batch read of the weights.
        decode_read_bytes: The least that one step reads of the weights and the cache.
        experts_touched_per_layer: Distinct routed experts that one decoding step reads, averaged
            over layers under `routing`; None without routed experts.
        notes: Why something is unknown, and what the bound leaves out for this model or GPU.
        gpu: The GPU's id, once it is part of an estimate.
        prefill_seen: Recorded runs of about this size on this kind of GPU, compared with their
            bounds on the prefill; None if there are none.
        decode_seen: The same for a decoding step.
    """

    routing: str
    prefill_s: float | None = None
    decode_s_per_token: float | None = None
    prefill_is_bound_by: str | None = None
    decode_is_bound_by: str | None = None
    prefill_weight_flops: int | None = None
    decode_weight_flops: int | None = None
    prefill_read_bytes: int | None = None
    decode_read_bytes: int | None = None
    experts_touched_per_layer: float | None = None
    notes: tuple[str, ...] = ()
    gpu: str | None = None
    prefill_seen: SeenSpeed | None = None
    decode_seen: SeenSpeed | None = None
