"""Measure models with packed experts on a GPU, against the same models in bfloat16.

    python -m benchmarks.quantized.on_gpu [--seconds 140]

Weights are random, drawn on the GPU while transformers reads them under the names of the published
files. Whole models are loaded in nf4, to see what they take. Times are of models cut to a few
layers, without embedding and head: those in bfloat16 and in nf4 are both on the GPU and run in
turns. In prefill, experts in bfloat16 run by `grouped_mm`, in decode by `batched_mm`, as `generate` chooses
on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import bitsandbytes.nn
import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks.quantized.random_weights import cut_config, load_drawn
from moetool.quantizing.experts import packed_tensors
from moetool.quantizing.kernels.launch import multiply_each
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.linear import make_lean
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.quantizer import ExpertsConfig
from moetool.quantizing.unpacking import unpack

DEVICE = "cuda:0"
PREFILL = (8, 2048)
NUM_STEPS, NUM_ROUNDS, CONTEXT = 16, 5, 128


@dataclass(frozen=True)
class Subject:
    """A published model, and the number of layers that are timed."""

    name: str
    num_timed: int


SUBJECTS = (
    Subject("mixtral-8x7b", 3),
    Subject("qwen3-30b-a3b", 10),
    Subject("olmoe-1b-7b", 10),
    Subject("gpt-oss-20b", 6),
    Subject("deepseek-v2-lite", 10),
)


def main() -> None:
    """Run everything, and print results as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=140.0)
    parser.add_argument("--only", nargs="*", default=[subject.name for subject in SUBJECTS])
    end = time.monotonic() + parser.parse_args().seconds
    only = parser.parse_args().only
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with reporting("kernels"):
        compare_linear_layers()
        compare_kernels()
    subjects = [subject for subject in SUBJECTS if subject.name in only]
    for subject in subjects:
        if time.monotonic() < end:
            with reporting(f"times of {subject.name}"):
                time_model(subject)
    for subject in subjects:
        if time.monotonic() < end:
            with reporting(f"memory of {subject.name}"):
                load_whole(subject)


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Print what fails, free what it left, and go on."""
    start = time.monotonic()
    try:
        yield
    except Exception:  # noqa: BLE001 - one case must not end the others
        traceback.print_exc()
    gc.collect()
    torch.cuda.empty_cache()
    say(f"# {what}: {time.monotonic() - start:.1f} s")


def compare_kernels() -> None:
    """Compare every kernel with plain torch in float64, and codes with those of the CPU."""
    matrix = ExpertMatrix("w", 8, 200, 704, is_transposed=False)
    stack = torch.randn(8, 200, 704, device=DEVICE, dtype=torch.bfloat16) * 0.05
    for quantization in (Quantization.NF4, Quantization.FP4, Quantization.INT8):
        for is_nested in (False, True):
            packing = Packing(quantization, is_nested)
            tensors = packing.quantize(stack, matrix)
            there = packing.quantize(stack.cpu(), matrix)
            same = [f"{(t.cpu() == there[name]).float().mean():.4f}" for name, t in tensors.items()]
            plain = unpack(
                {k: v.cpu() for k, v in tensors.items()},
                range(8),
                matrix,
                packing,
                dtype=torch.float32,
            )
            for dtype in (torch.float32, torch.bfloat16):
                on_gpu = unpack(tensors, range(8), matrix, packing, dtype=dtype)
                equal = torch.equal(on_gpu.cpu(), plain.to(dtype))
                rows = torch.randn(5, 704, device=DEVICE, dtype=dtype)
                ids = torch.randint(0, 8, (15,), device=DEVICE)
                bias = torch.randn(8, 200, device=DEVICE, dtype=dtype)
                each = multiply_each(rows, ids, tensors, matrix, packing, bias=bias)
                exact = (
                    torch.einsum(
                        "nok,nk->no",
                        plain.double()[ids.cpu()],
                        rows.double().cpu().repeat_interleave(3, 0),
                    )
                    + bias.double().cpu()[ids.cpu()]
                )
                error = ((each.double().cpu() - exact).norm() / exact.norm()).item()
                say(
                    f"kernels {quantization} nested={is_nested} {str(dtype)[6:]}: dequantized "
                    f"equal {equal}, product error {error:.1e}, equal to the CPU's {', '.join(same)}"
                )


def compare_linear_layers() -> None:
    """Compare linear layers that call bitsandbytes' kernels directly with its own layers."""
    library: Any = bitsandbytes.nn
    for has_bias in (False, True):
        layer = library.Linear4bit(704, 192, has_bias, torch.bfloat16, compress_statistics=False)
        layer = layer.to(torch.bfloat16).to(DEVICE)
        for shape in ((1, 1, 704), (8, 1, 704), (2, 300, 704)):
            rows = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
            with torch.inference_mode():
                layer.__class__ = library.Linear4bit
                usual = layer(rows)
                make_lean(layer)
                lean = layer(rows)
            same = torch.equal(usual, lean)
            say(f"linear layer, bias={has_bias}, {shape}: {type(layer).__name__} equal {same}")


def time_model(subject: Subject) -> None:
    """Print how long prefill and decode take in nf4, as a multiple of bfloat16."""
    config = cut_config(subject.name, subject.num_timed)
    # One for each: a model writes down in its configuration how its experts run.
    plain = load_drawn(copy.deepcopy(config), device=DEVICE)
    packed = load_drawn(
        copy.deepcopy(config), device=DEVICE, quantization_config=ExpertsConfig("nf4")
    )
    models = {"bf16": plain, "nf4": packed}
    for batch in (1, 8):
        report(subject, f"decode at batch {batch}", measure_decode(models, batch), per=NUM_STEPS)
    ids = torch.randint(0, config.vocab_size, PREFILL, device=DEVICE)
    report(subject, "prefill 8 x 2048", measure_prefill(models, ids), per=1)


def report(subject: Subject, what: str, times: dict[str, list[float]], *, per: int) -> None:
    """Print the medians of some times, and the median of the ratios of each round."""
    ratios = [nf4 / bf16 for bf16, nf4 in zip(times["bf16"], times["nf4"], strict=True)]
    bf16, nf4 = (statistics.median(times[name]) / per / subject.num_timed for name in times)
    say(
        f"{subject.name} ({subject.num_timed} layers), {what}: bf16 {bf16:.3f} ms, nf4 {nf4:.3f} ms "
        f"a layer, ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


def choose(models: dict[str, PreTrainedModel], implementation: str) -> None:
    """Choose how experts in bfloat16 run. Packed ones run their own code in any case."""
    models["bf16"].set_experts_implementation(implementation)
    used = models["bf16"].config._experts_implementation
    assert used == implementation, f"experts run by {used}, not by {implementation}"


def measure_decode(models: dict[str, PreTrainedModel], batch: int) -> dict[str, list[float]]:
    """Return milliseconds of some decode steps of each model, in turns."""
    choose(models, "grouped_mm")
    ids = torch.randint(0, 1000, (batch, CONTEXT), device=DEVICE)
    caches = {}
    for name, model in models.items():
        caches[name] = DynamicCache(config=model.config)
        run(model, ids, caches[name])
    choose(models, "batched_mm")

    def steps(name: str) -> None:
        for _ in range(NUM_STEPS):
            run(models[name], ids[:, :1], caches[name])

    return in_turns(steps, models)


def measure_prefill(
    models: dict[str, PreTrainedModel], ids: torch.Tensor
) -> dict[str, list[float]]:
    """Return milliseconds of a prefill of each model, in turns."""
    choose(models, "grouped_mm")
    return in_turns(
        lambda name: run(models[name], ids, DynamicCache(config=models[name].config)), models
    )


def in_turns(
    function: Callable[[str], None], models: dict[str, PreTrainedModel]
) -> dict[str, list[float]]:
    """Return milliseconds that a function takes for each model, in several rounds after one."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(NUM_ROUNDS + 1):
        for name in models:
            torch.cuda.synchronize()
            start = time.perf_counter()
            function(name)
            torch.cuda.synchronize()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


@torch.inference_mode()
def run(model: Any, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Run a model without its head."""
    model.model(input_ids=ids, cache=cache, use_cache=True)


def load_whole(subject: Subject) -> None:
    """Print what a whole model takes in nf4, once it is loaded and while it loads."""
    config = cut_config(subject.name, None)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    model: Any = load_drawn(config, device=DEVICE, quantization_config=ExpertsConfig("nf4"))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    loaded = torch.cuda.memory_allocated() - before
    peak = torch.cuda.max_memory_allocated() - before
    layers = [module for module in model.modules() if hasattr(module, "packed_matrices")]
    one = sum(m.num_experts * m.num_weights * 2 for m in layers[0].packed_matrices)
    packed = sum(
        tensor.nbytes
        for layer in layers
        for matrix in layer.packed_matrices
        for tensor in packed_tensors(layer, matrix).values()
    )
    say(
        f"{subject.name}: {loaded / 1e9:.2f} GB allocated after loading, of these {packed / 1e9:.2f} "
        f"packed experts; peak {peak / 1e9:.2f} GB while loading = final + "
        f"{(peak - loaded) / one:.2f} layers of bf16 experts ({one / 1e9:.2f} GB each); "
        f"{seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
