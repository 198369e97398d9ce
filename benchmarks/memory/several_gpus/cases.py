"""Geometries whose memory on several GPUs is measured, and the ways in which GPUs share them."""

from __future__ import annotations

from typing import Any

import transformers

ALL_WAYS = ("tensor", "expert", "device-map")
CASES = {
    "Qwen3-30B-A3B, 4 layers": (*ALL_WAYS, "data"),
    "DeepSeek-V2-Lite, 4 layers": ALL_WAYS,
    "Mixtral-8x7B, 2 layers": ("tensor", "expert"),
    "Mixtral-8x7B, 4 layers": ("device-map",),
}
IN_FP8 = {"qwen3-30b-a3b-fp8": ALL_WAYS, "deepseek-v3": ALL_WAYS}


def make_config(name: str) -> Any:
    """Return the configuration of a cut geometry."""
    from benchmarks.tracing.parallel_on_gpus import GEOMETRIES

    known = next(key for key in GEOMETRIES if key.split(",")[0] == name.split(",")[0])
    model_type, values = GEOMETRIES[known]
    num_layers = int(name.split()[-2])
    make: Any = transformers.CONFIG_MAPPING[model_type]
    changes = {"num_hidden_layers": num_layers, "max_position_embeddings": 4096, "pad_token_id": 0}
    return make(**values | changes)
