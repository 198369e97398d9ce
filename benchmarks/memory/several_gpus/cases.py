"""Geometries whose memory on several GPUs is measured, and the ways in which GPUs share them."""

from __future__ import annotations

ALL_WAYS = ("tensor", "expert", "device-map")
CASES = {
    "Qwen3-30B-A3B, 4 layers": (*ALL_WAYS, "data"),
    "DeepSeek-V2-Lite, 4 layers": ALL_WAYS,
    "Mixtral-8x7B, 2 layers": ("tensor", "expert"),
    "Mixtral-8x7B, 4 layers": ("device-map",),
}
IN_FP8 = {"qwen3-30b-a3b-fp8": ALL_WAYS, "deepseek-v3": ALL_WAYS}
