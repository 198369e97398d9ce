"""What is told of the memory that a model needs: values that reports show as they are.

All sizes are in bytes. What is unknown is None, with the reason among the notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from moetool.memory.scenario import Scenario
from moetool.quantized.kinds import Quantization


class Method(StrEnum):
    """How a figure came about.

    Attributes:
        SIMULATED: The model's own code ran without data, every allocation followed.
        APPROXIMATE: As simulated, under an assumption that the notes name.
        MEASURED: Read from a GPU.
        REPORTED: Someone else's word.
    """

    SIMULATED = "simulated"
    APPROXIMATE = "approximate"
    MEASURED = "measured"
    REPORTED = "reported"


class Phase(StrEnum):
    """What a model was doing."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which most memory is allocated.

    Attributes:
        phase: The phase.
        layer: The path of the layer that made it; None outside of layers.
        operation: The operation that made it, with the module it ran in.
        weights_bytes: Parameters and buffers; None if unknown.
        cache_bytes: Keys, values and states that the cache holds.
        activation_bytes: Everything else that comes and goes.
        workspace_bytes: What libraries keep for products of matrices.
    """

    phase: Phase
    layer: str | None
    operation: str
    weights_bytes: int | None
    cache_bytes: int
    activation_bytes: int
    workspace_bytes: int

    @property
    def allocated_bytes(self) -> int | None:
        """All of it: what `torch.cuda.memory_allocated` would show; None if unknown."""
        if self.weights_bytes is None:
            return None
        return self.weights_bytes + self.above_weights_bytes

    @property
    def above_weights_bytes(self) -> int:
        """All of it but the weights."""
        return self.cache_bytes + self.activation_bytes + self.workspace_bytes


@dataclass(frozen=True)
class MemoryFigures:
    """What a run takes.

    Attributes:
        weights_bytes: Parameters and buffers, as the allocator holds them; None if unknown.
        cache_bytes: The cache after the last token that is run; 0 without a cache.
        peak_allocated_bytes: What `torch.cuda.max_memory_allocated` shows; None if unknown.
        peak_reserved_bytes: What `torch.cuda.max_memory_reserved` shows; None if unknown.
        total_device_bytes: What the device's own tools show: reserved and the CUDA context; None
            if unknown.
    """

    weights_bytes: int | None
    cache_bytes: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    total_device_bytes: int | None

    @property
    def slack_bytes(self) -> int | None:
        """What the allocator reserves beyond what is allocated, at their peaks; None if unknown."""
        if self.peak_reserved_bytes is None or self.peak_allocated_bytes is None:
            return None
        return self.peak_reserved_bytes - self.peak_allocated_bytes


@dataclass(frozen=True)
class Fit:
    """Whether a run fits on a kind of GPU.

    Attributes:
        gpu: The GPU's id.
        memory_bytes: What it has.
        quantization: How the weights are stored.
        num_gpus: How many of them it takes with transformers' `device_map="auto"`, whose unit is the
            decoder layer; None if no number does, or it is unknown.
        fits: Whether it fits on one: whether it runs through there, torch's allocator giving back
            what it holds in reserve where the GPU has no room left.
        headroom_bytes: What is left on one. If it doesn't fit, negative: what one lacks of all that
            the allocator asks for.
    """

    gpu: str
    memory_bytes: int
    quantization: Quantization
    num_gpus: int | None
    fits: bool | None
    headroom_bytes: int | None


@dataclass(frozen=True)
class Limits:
    """The largest scenarios that fit on one GPU, all else alike.

    Attributes:
        gpu: The GPU's id.
        largest_prompt_tokens: The longest prompt at this batch size; 0 if none fits. Confirmed by a
            simulation.
        largest_batch_size: The most sequences at this length; 0 if none fits. Confirmed likewise.
        is_whole_context: Whether the longest prompt is cut off by the model's context alone.
    """

    gpu: str
    largest_prompt_tokens: int
    largest_batch_size: int
    is_whole_context: bool


@dataclass(frozen=True)
class RankBytes:
    """What each GPU of several holds of the weights, under one way of sharing them.

    Attributes:
        way: `device_map`, `tensor_parallel` or `expert_parallel`.
        num_gpus: How many GPUs share.
        weights_bytes: What each holds, in order.
        num_layers: How many decoder layers each holds, for `device_map`; None for the others, where
            each holds a part of every layer.
        replicated_bytes: What every GPU holds in full; None for `device_map`.
        reason: Why the way can't be gone; None if it can.
    """

    way: str
    num_gpus: int
    weights_bytes: tuple[int, ...]
    num_layers: tuple[int, ...] | None = None
    replicated_bytes: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Offload:
    """Routed experts in the host's memory, everything else on the GPU.

    transformers moves the experts of one layer after another to the GPU, where there has to be room
    for them. Other engines, such as llama.cpp, compute them on the host: they need no such room.

    Attributes:
        gpu: The GPU's id.
        num_offloaded_layers: How many layers' routed experts have to go with transformers, to fit
            the rest.
        num_moe_layers: Layers with routed experts.
        gpu_bytes: What stays on the GPU at the peak with transformers, the experts at work
            included.
        host_bytes: What the host has to hold then.
        transfer_bytes_per_token: What crosses the bus for each token that is decoded with
            transformers, which moves every expert of a layer.
        computed_on_host_bytes_per_token: What engines that compute experts on the host read there
            for each token instead; nothing but activations crosses. None if unknown.
        flags: By engine, what to set; engines with which it doesn't fit are left out.
        fits: Whether it fits with transformers.
        num_host_computed_layers: How many layers' routed experts have to go with engines that
            compute them on the host, if they need as much as transformers for all else.
        fits_computed_on_host: Whether it fits with those.
    """

    gpu: str
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


@dataclass(frozen=True)
class SpeedBound:
    """The least time that a GPU's own limits allow: no run can be faster.

    Attributes:
        gpu: The GPU's id.
        routing: `uniform`, or the name of the trace that tells how tokens choose experts.
        prefill_s: Of the whole prompt's batch; None if unknown.
        decode_s_per_token: Of one step of decoding, for the whole batch; None if unknown or if
            nothing is decoded.
        prefill_is_bound_by: `compute` or `memory`.
        decode_is_bound_by: `compute` or `memory`.
        prefill_weight_flops: FLOPs of the products with weights alone, of the prompt's batch.
        decode_weight_flops: Of one step.
        prefill_read_bytes: Weights that the prompt's batch reads at least.
        decode_read_bytes: Weights and cache that one step reads at least.
        experts_touched_per_layer: Distinct routed experts that a step of decoding reads, in the mean
            over layers and under `routing`; None without routed experts.
        notes: Why something is unknown, and what the bound leaves out for this model or GPU.
    """

    gpu: str
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


class Basis(StrEnum):
    """Which bytes of a quantized checkpoint's weights its figures rest on.

    Attributes:
        LOADED: What transformers' own modules take.
        PUBLISHED: The weights packed as they are published. Whether they are held so on the GPU
            depends on what is installed there.
        COPY: A copy in the dtype that was asked for.
        UNKNOWN: Nothing tells what they take.
    """

    LOADED = "as-loaded"
    PUBLISHED = "as-published"
    COPY = "copy"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint that is quantized already, as it lies in its files and as it is loaded.

    Attributes:
        method: The quantization's name.
        stored_bytes: All that is in the files, scales included; None if unknown.
        loaded_bytes: On the GPU as transformers loads it; None if unknown.
        is_dequantized: Whether it is loaded in full precision; None if unknown.
        packed_bytes: What of it a model holds, packed as it is published; None if unknown.
        dequantized_bytes: The same weights in full precision.
        basis: Which of them the figures rest on.
        reason: Why the bytes as loaded are unknown; None if they are known.
    """

    method: str
    stored_bytes: int | None
    loaded_bytes: int | None
    is_dequantized: bool | None
    packed_bytes: int | None = None
    dequantized_bytes: int | None = None
    basis: Basis = Basis.LOADED
    reason: str | None = None

    @property
    def held_bytes(self) -> int | None:
        """What the figures take for the weights; None if that is unknown, or if they are of a copy."""
        if self.basis is Basis.LOADED:
            return self.loaded_bytes
        return self.packed_bytes if self.basis is Basis.PUBLISHED else None


@dataclass(frozen=True)
class Measurement:
    """What a GPU showed for the same scenario.

    Attributes:
        gpu: The device's name.
        figures: The figures.
        context_bytes: What the device holds beside torch's reserved memory, without what it held
            before.
        held_before_bytes: What the device held before this process used it; None if unknown: then
            it counts as the context's.
        seconds: Wall time of the run.
    """

    gpu: str
    figures: MemoryFigures
    context_bytes: int
    seconds: float
    held_before_bytes: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What a model needs for a scenario.

    Attributes:
        model: The name it was asked for by.
        scenario: What is run.
        method: How the figures came about.
        gpu: The id of the GPU that the figures are for.
        figures: What the run takes, for `scenario.experts`.
        context_bytes: What the CUDA context takes on the device; None if unknown.
        peaks: Of prefill and of decoding, in this order; without the latter if nothing is decoded.
        variants: Under quantization: `transformers`, as it loads the model today, and
            `experts_quantized`, with routed experts quantized as well. Of a checkpoint that is
            quantized already: `as_published`, packed, if that is known, and `dequantized`. Else
            empty.
        fits: By GPU and quantization.
        limits: The largest scenarios that fit; None if no GPU was named.
        ranks: How several GPUs would share the weights.
        offload: Experts in the host's memory; None if no GPU was named, or there are no experts.
        speed: Lower bounds on time; None if no GPU was named.
        stored: Of checkpoints that are quantized already.
        measured: What a GPU showed; None if it wasn't asked.
        notes: What a reader has to know.
        confirmed_on: The GPU and the day on which runs of this kind of model were measured and
            compared with their estimates; None if none were.
    """

    model: str
    scenario: Scenario
    method: Method
    gpu: str
    figures: MemoryFigures
    context_bytes: int | None
    peaks: tuple[Peak, ...] = ()
    variants: Mapping[str, MemoryFigures] = field(default_factory=dict)
    fits: tuple[Fit, ...] = ()
    limits: Limits | None = None
    ranks: tuple[RankBytes, ...] = ()
    offload: Offload | None = None
    speed: SpeedBound | None = None
    stored: StoredWeights | None = None
    measured: Measurement | None = None
    notes: tuple[str, ...] = ()
    confirmed_on: str | None = None

    @property
    def at_peak(self) -> Peak | None:
        """The moment at which most memory is allocated; None if unknown."""
        return max(self.peaks, key=lambda peak: peak.above_weights_bytes, default=None)

    @property
    def fit(self) -> Fit | None:
        """Whether it fits on the GPU that the figures are for; None if it is not among `fits`."""
        return next((fit for fit in self._fits_as_run if fit.gpu == self.gpu), None)

    @property
    def fits_dequantized(self) -> tuple[Fit, ...]:
        """Whether it fits on each GPU where its weights are dequantized.

        Of a checkpoint that is quantized already, unless it is known how transformers loads it: else
        empty.
        """
        figures = self.variants.get("dequantized")
        is_open = self.stored is not None and self.stored.basis in (Basis.PUBLISHED, Basis.UNKNOWN)
        total_bytes = figures.total_device_bytes if figures is not None and is_open else None
        if total_bytes is None:
            return ()
        return tuple(
            replace(
                fit,
                num_gpus=1 if total_bytes <= fit.memory_bytes else None,
                fits=total_bytes <= fit.memory_bytes,
                headroom_bytes=fit.memory_bytes - total_bytes,
            )
            for fit in self._fits_as_run
        )

    @property
    def smallest_fit(self) -> Fit | None:
        """The GPU with the least memory, of those that it fits on; None if it fits on none."""
        fitting = (fit for fit in self._fits_as_run if fit.fits)
        return min(fitting, key=lambda fit: fit.memory_bytes, default=None)

    @property
    def excess_over_measured_bytes(self) -> Mapping[str, int]:
        """Estimated less measured, by the figure's name; without those that one of them lacks."""
        if self.measured is None:
            return {}
        measured = self.measured.figures
        pairs = {
            **{
                each.name: (getattr(self.figures, each.name), getattr(measured, each.name))
                for each in fields(MemoryFigures)
            },
            "context_bytes": (self.context_bytes, self.measured.context_bytes),
        }
        return {
            name: estimated - found
            for name, (estimated, found) in pairs.items()
            if estimated is not None and found is not None
        }

    @property
    def _fits_as_run(self) -> tuple[Fit, ...]:
        return tuple(fit for fit in self.fits if fit.quantization == self.scenario.quantization)
