"""The layers that are recorded on a GPU, and how exactly each can be compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.tracing.frameworks_on_gpu import layers
from benchmarks.tracing.frameworks_on_gpu.layers import GpuLayer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (2, 60) if DEVICE == "cuda" else (2, 12)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Largest differences of weights from the fit: by Triton's products in TF32, and in few bits.
PLAIN, TF32, FEW_BITS = 1e-4, 0.01, 0.04

Make = Callable[[], GpuLayer]


def _case(
    package: str, name: str, make: Callable[..., GpuLayer], dtype: torch.dtype, tolerance: float
) -> tuple[str, str, Make, torch.dtype, float]:
    return package, name, partial(make, dtype=dtype, device=DEVICE), dtype, tolerance


# By package: what its layer is, how it is made, its dtype, and the largest difference.
CASES = [
    _case(
        "megablocks", "dMoE, grouped", partial(layers.megablocks, "dMoE", "grouped"), BF16, FEW_BITS
    ),
    _case(
        "megablocks",
        "dMoE, grouped, gated",
        partial(layers.megablocks, "dMoE", "grouped", mlp="glu"),
        BF16,
        FEW_BITS,
    ),
    _case(
        "megablocks", "dMoE, sparse", partial(layers.megablocks, "dMoE", "sparse"), BF16, FEW_BITS
    ),
    _case(
        "megablocks",
        "dMoE, sparse, gated",
        partial(layers.megablocks, "dMoE", "sparse", mlp="glu"),
        F16,
        FEW_BITS,
    ),
    _case(
        "megablocks", "MoE with capacity", partial(layers.megablocks, "MoE", "grouped"), F32, PLAIN
    ),
    _case(
        "megablocks",
        "MoE with capacity, in bfloat16",
        partial(layers.megablocks, "MoE", "grouped"),
        BF16,
        FEW_BITS,
    ),
    _case("scattermoe", "MLP", partial(layers.scattermoe, "MLP", bias=False), F32, TF32),
    _case(
        "scattermoe",
        "GLUMLP with biases",
        partial(layers.scattermoe, "GLUMLP", bias=True),
        F32,
        TF32,
    ),
    _case(
        "scattermoe",
        "GLUMLP, in bfloat16",
        partial(layers.scattermoe, "GLUMLP", bias=False),
        BF16,
        FEW_BITS,
    ),
    _case("ai2-olmo-core", "MoE with capacity", partial(layers.olmo_core, "default"), F32, PLAIN),
    _case("ai2-olmo-core", "DroplessMoE", partial(layers.olmo_core, "dropless"), F32, FEW_BITS),
    _case(
        "ai2-olmo-core",
        "DroplessMoE with a shared expert",
        partial(layers.olmo_core, "dropless", has_shared=True),
        F32,
        FEW_BITS,
    ),
    _case(
        "ai2-olmo-core",
        "DroplessMoE without grouped_gemm",
        partial(layers.olmo_core, "dropless", has_grouped=False),
        F32,
        PLAIN,
    ),
    _case("megatron-core", "MoELayer, alltoall", partial(layers.megatron, "alltoall"), F32, PLAIN),
    _case(
        "megatron-core",
        "MoELayer, alltoall, in bfloat16",
        partial(layers.megatron, "alltoall"),
        BF16,
        FEW_BITS,
    ),
    _case(
        "megatron-core",
        "MoELayer, alltoall with capacity",
        partial(layers.megatron, "alltoall", moe_expert_capacity_factor=1.0),
        F32,
        PLAIN,
    ),
    _case(
        "megatron-core", "MoELayer, allgather", partial(layers.megatron, "allgather"), F32, PLAIN
    ),
]
