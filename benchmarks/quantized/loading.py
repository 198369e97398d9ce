"""Measure what loading a quantized model takes on a GPU, and compare its codes with the CPU's.

    python -m benchmarks.quantized.loading [MODEL ...]

Published geometries, cut to their first layers, are saved with random weights and loaded as a user
loads them. What torch has reserved is compared with what is allocated.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from moetool import load_quantized, quantize_checkpoint
from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config

# For each model, the layers that are left.
MODELS = {"OLMoE-1B-7B": 4, "mixtral-8x7b": 2}


def main() -> None:
    """Print a line for each model and format."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help=f"by default {', '.join(MODELS)}"
    )
    for name in parser.parse_args().models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            save_random(name, source)
            for quantization in ("nf4", "fp4", "int8"):
                measure(name, source, quantization)
            compare(name, source, Path(folder) / "on-cpu")


def save_random(name: str, folder: Path) -> None:
    """Save a model with random weights, drawn on the GPU, in bfloat16."""
    from transformers import AutoModelForCausalLM

    config = make_config(
        read_published_config(name.lower()),
        name=name,
        label=name,
        code=None,
        trust_remote_code=False,
    )
    config.num_hidden_layers = MODELS[name]
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    release()


def release() -> None:
    """Give back what nothing uses."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure(name: str, source: Path, quantization: str) -> None:
    """Print the memory and time of loading."""
    release()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    model = load_quantized(source, quantization, device="cuda")
    seconds = time.perf_counter() - start
    gigabytes: dict[str, float] = {
        "allocated": torch.cuda.memory_allocated() - before,
        "reserved": torch.cuda.memory_reserved(),
        "peak allocated": torch.cuda.max_memory_allocated() - before,
        "peak reserved": torch.cuda.max_memory_reserved(),
    }
    words = ", ".join(f"{key} {value / 1e9:.3f}" for key, value in gigabytes.items())
    print(f"{name}, {quantization}: {words} GB; {seconds:.1f} s", flush=True)
    del model
    release()


def compare(name: str, source: Path, folder: Path) -> None:
    """Print the share of codes and scales that are the same when a CPU quantizes them."""
    start = time.perf_counter()
    quantize_checkpoint(source, folder, "nf4")
    seconds = time.perf_counter() - start
    first: Any = load_quantized(folder, device="cuda").state_dict()
    second: Any = load_quantized(source, "nf4", device="cuda").state_dict()
    same = total = 0
    for key, tensor in first.items():
        if tensor.dtype is torch.uint8:
            same += int((tensor == second[key]).sum())
            total += tensor.numel()
    print(f"{name}: {same:,} of {total:,} bytes of codes are equal; quantized in {seconds:.1f} s")


if __name__ == "__main__":
    main()
