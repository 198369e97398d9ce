"""Hand-made estimates, without torch, for tests of reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moetool.memory.answers.figures import MemoryFigures, Method, Peak, Phase, StoredWeights
from moetool.memory.answers.on_gpus import Fit, Limits, Offload, RankBytes, SpeedBound
from moetool.memory.measured.measurement import Measurement
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario
from moetool.quantized.kinds import Quantization
from moetool.simulation.memory.timeline import AllocatedParts

MIB = 2**20
GIB = 2**30

FIGURES = MemoryFigures(
    weights_bytes=16 * GIB,
    cache_bytes=2 * GIB,
    peak_allocated_bytes=20 * GIB,
    peak_reserved_bytes=21 * GIB,
    total_device_bytes=21 * GIB + 512 * MIB,
)
PREFILL = Peak(
    phase=Phase.PREFILL,
    layer=None,
    operation="mm in lm_head",
    parts=AllocatedParts(
        weights_bytes=16 * GIB,
        cache_bytes=1 * GIB,
        activation_bytes=1 * GIB,
        workspace_bytes=256 * MIB,
    ),
)
DECODE = Peak(
    phase=Phase.DECODE,
    layer="model.layers.3",
    operation="index in mlp.experts",
    parts=AllocatedParts(
        weights_bytes=16 * GIB,
        cache_bytes=2 * GIB,
        activation_bytes=1 * GIB + 768 * MIB,
        workspace_bytes=256 * MIB,
    ),
)


def make_fit(
    gpu: str,
    *,
    memory_gib: float,
    needs_gib: float,
    quantization: Quantization = Quantization.NONE,
    num_gpus: int | None = None,
) -> Fit:
    """Return a verdict on whether `needs_gib` fits into `memory_gib`."""
    headroom_bytes = round((memory_gib - needs_gib) * GIB)
    return Fit(
        gpu=gpu,
        memory_bytes=round(memory_gib * GIB),
        quantization=quantization,
        num_gpus=num_gpus,
        fits=headroom_bytes >= 0,
        headroom_bytes=headroom_bytes,
    )


FITS = (
    make_fit("big", memory_gib=80, needs_gib=21.5, num_gpus=1),
    make_fit("small", memory_gib=16, needs_gib=21.5, num_gpus=3),
    make_fit("big", memory_gib=80, needs_gib=9.5, quantization=Quantization.NF4, num_gpus=1),
    make_fit("small", memory_gib=16, needs_gib=9.5, quantization=Quantization.NF4, num_gpus=1),
)
FITS_OF_BIG = tuple(fit for fit in FITS if fit.gpu == "big")
FITS_OF_SMALL = tuple(fit for fit in FITS if fit.gpu == "small")
LIMITS = Limits(largest_prompt_tokens=32_768, largest_batch_size=61, is_whole_context=True)
RANKS = (
    RankBytes(
        way="device_map",
        num_gpus=3,
        weights_bytes=(6 * GIB, 6 * GIB, 4 * GIB),
        num_layers=(7, 7, 4),
    ),
    RankBytes(
        way="tensor_parallel",
        num_gpus=2,
        weights_bytes=(9 * GIB, 9 * GIB),
        replicated_bytes=2 * GIB,
    ),
    RankBytes(
        way="expert_parallel",
        num_gpus=3,
        weights_bytes=(),
        reason="8 experts can't be shared evenly by 3.",
    ),
)
OFFLOAD = Offload(
    num_offloaded_layers=7,
    num_moe_layers=18,
    gpu_bytes=15 * GIB,
    host_bytes=7 * GIB,
    transfer_bytes_per_token=7 * GIB,
    computed_on_host_bytes_per_token=1792 * MIB,
    flags={"llama.cpp": "--n-cpu-moe 7", "transformers": f"device_map={{{'0: 1, ' * 30}}}"},
    fits=True,
    num_host_computed_layers=6,
    fits_computed_on_host=True,
)
SPEED = SpeedBound(
    prefill_s=0.0272,
    decode_s_per_token=0.00083,
    prefill_is_bound_by="compute",
    decode_is_bound_by="memory",
    prefill_weight_flops=53 * 10**12,
    decode_weight_flops=26 * 10**9,
    prefill_read_bytes=16 * GIB,
    decode_read_bytes=4 * GIB,
    experts_touched_per_layer=2.04,
    routing="uniform",
)
STORED = StoredWeights(
    method="fp8", stored_bytes=9 * GIB, loaded_bytes=16 * GIB, is_dequantized=True
)
MEASURED = Measurement(
    gpu="NVIDIA Big",
    figures=replace(
        FIGURES,
        peak_allocated_bytes=20 * GIB + 512 * MIB,
        peak_reserved_bytes=None,
        total_device_bytes=21 * GIB,
    ),
    context_bytes=500 * MIB,
    seconds=12.34,
)


def make_estimate(**changes: Any) -> Estimate:
    """Return an estimate whose parts add up, with some fields changed.

    It is for all known GPUs if it has fits on another one than its own.
    """
    estimate = Estimate(
        model="small-4x",
        scenario=Scenario(),
        method=Method.SIMULATED,
        gpu="big",
        figures=FIGURES,
        context_bytes=512 * MIB,
        peaks=(PREFILL, DECODE),
        fits=FITS_OF_BIG,
    )
    changed = replace(estimate, **changes)
    return replace(changed, is_gpu_named={fit.gpu for fit in changed.fits} <= {changed.gpu})


def make_full_estimate() -> Estimate:
    """Return an estimate with every optional part."""
    variants = {
        "transformers": FIGURES,
        "experts_quantized": replace(FIGURES, weights_bytes=4 * GIB),
    }
    return make_estimate(
        gpu="small",
        fits=FITS_OF_SMALL,
        variants=variants,
        limits=LIMITS,
        ranks=RANKS,
        offload=OFFLOAD,
        speed=SPEED,
        stored=STORED,
        measured=MEASURED,
        notes=("A note that is long enough to be cut: " + "so " * 14, "Another."),
    )
