"""Measure the cost of recording a prefill on a GPU, in published geometries with random weights.

    python benchmarks/recording_on_gpu.py

Each figure is the time of a forward with recording over that of the plain forward: the median over
pairs that alternate in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from moetool import RoutingRecorder

GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "OLMoE-1B-7B": (
        "olmoe",
        {
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "vocab_size": 50304,
        },
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
        },
    ),
}
SHAPES = ((8, 2048), (1, 512))
PAIRS = 15


def main() -> None:
    """Measure every geometry and shape."""
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}\n")
    print("| geometry | batch × tokens | plain, tokens/s | recording | with router scores |")
    print("|---|---|---:|---:|---:|")
    for geometry, (model_type, values) in GEOMETRIES.items():
        config = CONFIG_MAPPING[model_type](**values)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        for batch_size, num_tokens in SHAPES:
            ids = torch.randint(0, config.vocab_size, (batch_size, num_tokens), device="cuda")
            plain, recorded, scored = measure(model, ids)
            print(
                f"| {geometry} | {batch_size} × {num_tokens} | {ids.numel() / plain:,.0f} "
                f"| {recorded:.3f} | {scored:.3f} |",
                flush=True,
            )
        del model
        torch.cuda.empty_cache()


def measure(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, float, float]:
    """Return the plain forward's seconds, and the two ratios over it."""
    variants: list[Callable[[], AbstractContextManager[Any]]] = [
        nullcontext,
        lambda: RoutingRecorder(model),
        lambda: RoutingRecorder(model, keep_scores=True),
    ]
    times: list[list[float]] = [[], [], []]
    for round_ in range(PAIRS + 2):
        for index, variant in enumerate(variants):
            with variant(), torch.inference_mode():
                torch.cuda.synchronize()
                start = time.perf_counter()
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
                torch.cuda.synchronize()
                seconds = time.perf_counter() - start
            if round_ >= 2:
                times[index].append(seconds)
    plain = times[0]
    recorded, scored = (
        statistics.median(b / a for a, b in zip(plain, other, strict=True)) for other in times[1:]
    )
    return statistics.median(plain), recorded, scored


if __name__ == "__main__":
    main()
