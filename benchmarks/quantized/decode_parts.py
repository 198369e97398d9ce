"""Show where the time of a decode step goes, in bfloat16 and in nf4.

    python -m benchmarks.quantized.decode_parts [--only NAME ...] [--batch 1]

For each part of the last layer: microseconds that Python needs to issue a call, and those until the
GPU has finished it. Where they are equal, the GPU waits for Python. Then the kernels of a step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.quantized.cases import exit_if_failed, reporting
from benchmarks.quantized.on_gpu import SUBJECTS
from benchmarks.quantized.random_weights import cut_config
from benchmarks.quantized.variants import (
    CONTEXT,
    DEVICE,
    Variant,
    load_variants,
    say,
    start_decode,
)

_NUM_LAYERS, _NUM_CALLS, _NUM_ROUNDS = 3, 100, 5
_MOST_KERNELS = 12


def main() -> None:
    """Print the parts of each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch}")
    for name in options.only:
        with reporting(name):
            show_model(name, options.batch)
    exit_if_failed()


def show_model(name: str, batch: int) -> None:
    """Print the parts of a step of one model."""
    variants = load_variants(cut_config(name, _NUM_LAYERS))
    ids = torch.randint(0, 1000, (batch, CONTEXT), device=DEVICE)
    start_decode(variants, ids)
    parts: dict[str, dict[str, tuple[float, float]]] = {}
    for kind, variant in variants.items():
        variant.choose()
        for part, call in catch_calls(variant, ids[:, :1]).items():
            parts.setdefault(part, {})[kind] = time_call(call)
    for part, times in parts.items():
        shown = ", ".join(f"{kind} {a:.0f} / {b:.0f}" for kind, (a, b) in times.items())
        say(f"{name} {part}: {shown} us")
    for kind, variant in variants.items():
        variant.choose()
        started = variant.cache

        def step(variant: Variant = variant, started: Any = started) -> None:
            # Always at the same length: cuDNN's attention prepares itself for each new one.
            variant.cache = copy.copy(started)
            variant.cache.layers = [copy.copy(layer) for layer in variant.cache.layers]
            variant.step(ids[:, :1])

        issue, total = time_call(step, num_calls=10)
        say(f"{name} {kind}: {issue / _NUM_LAYERS:.0f} / {total / _NUM_LAYERS:.0f} us a layer")
        show_kernels(step)


def catch_calls(variant: Variant, ids: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return calls of the parts of the last layer, with the arguments that a step gives them."""
    model: Any = variant.model
    layer: nn.Module = model.model.layers[-1]
    calls: dict[str, Callable[[], Any]] = {}
    handles = []
    for path, module in layer.named_modules():
        # Attention as a whole would lengthen the cache with each call.
        if not path or path.endswith("self_attn"):
            continue

        def catch(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path
        ) -> None:
            calls.setdefault(path, lambda: module(*args, **kwargs))

        handles.append(module.register_forward_pre_hook(catch, with_kwargs=True))
    variant.step(ids)
    for handle in handles:
        handle.remove()
    return calls


@torch.inference_mode()
def time_call(call: Callable[[], Any], *, num_calls: int = _NUM_CALLS) -> tuple[float, float]:
    """Return the median microseconds to issue a call, and to finish it."""
    issues, totals = [], []
    for _ in range(_NUM_ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(num_calls):
            call()
        issued = time.perf_counter()
        torch.cuda.synchronize()
        issues.append(1e6 * (issued - start) / num_calls)
        totals.append(1e6 * (time.perf_counter() - start) / num_calls)
    return statistics.median(issues[1:]), statistics.median(totals[1:])


def show_kernels(step: Callable[[], None]) -> None:
    """Print the kernels that take the GPU longest in a step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels)
    count = sum(event.count for event in kernels)
    say(f"  {count} kernels, {busy / _NUM_LAYERS:.0f} us a layer on the GPU")
    for event in kernels[:_MOST_KERNELS]:
        say(f"  {event.self_device_time_total:6.0f} us {event.count:4d} x {event.key[:90]}")


if __name__ == "__main__":
    main()
