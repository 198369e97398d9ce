"""Measure models with packed experts on a GPU, against the same models in bfloat16.

    python -m benchmarks.quantized.on_gpu [--seconds 140]

Weights are random, drawn on the GPU while transformers reads them under the names of the published
files. Whole models are loaded in nf4, to see what they take. Times are of models cut to a few
layers, without embedding and head: those in bfloat16 and in nf4 are both on the GPU and run in
turns. In prefill, experts in bfloat16 run by `grouped_mm`. In decode they run by `batched_mm`, as
`generate` chooses on a GPU, and by `grouped_mm`.

The exit status is 1 if a kernel and plain torch disagree, or anything else fails.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bitsandbytes.nn
import torch

from benchmarks.quantized.agreement import (
    TOLERANCES,
    find_disagreements,
    list_cases,
    measure_errors,
)
from benchmarks.quantized.cases import exit_if_failed, reporting
from benchmarks.quantized.random_weights import cut_config, load_drawn
from benchmarks.quantized.variants import (
    CONTEXT,
    DEVICE,
    Variant,
    load_variants,
    say,
    start_decode,
)
from moetool.quantizing.experts import packed_tensors
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.linear import make_lean
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.quantizer import ExpertsConfig
from moetool.quantizing.unpacking import unpack

PREFILL = (8, 2048)
NUM_STEPS, NUM_ROUNDS = 16, 9


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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=140.0)
    parser.add_argument("--only", nargs="*", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with reporting("kernels"):
        compare_kernels()
    subjects = [subject for subject in SUBJECTS if subject.name in options.only]
    for subject in subjects:
        if time.monotonic() < end:
            with reporting(f"times of {subject.name}"):
                time_model(subject)
    for subject in subjects:
        if time.monotonic() < end and not options.no_memory:
            with reporting(f"memory of {subject.name}"):
                load_whole(subject)
    exit_if_failed()


def compare_kernels() -> None:
    """Compare every kernel with plain torch, and stop if one is wrong."""
    wrong = []
    for case in list_cases():
        errors = measure_errors(case, DEVICE)
        say(f"kernels, {case}: {', '.join(f'{name} {e:.1e}' for name, e in errors.items())}")
        wrong += find_disagreements(case, errors, DEVICE)
    for quantization in (Quantization.NF4, Quantization.FP4, Quantization.INT8):
        for is_nested in (False, True):
            wrong += compare_dequantized(Packing(quantization, is_nested))
    wrong += compare_linear_layers()
    assert not wrong, f"not as by plain torch: {'; '.join(wrong)}"


def compare_dequantized(packing: Packing) -> list[str]:
    """Return the dtypes in which dequantized matrices aren't the CPU's bit for bit.

    Codes are compared too: those that bitsandbytes makes on a GPU aren't all those of its CPU code.
    """
    matrix = ExpertMatrix("w", 8, 200, 704, is_transposed=False)
    stack = torch.randn(8, 200, 704, device=DEVICE, dtype=torch.bfloat16) * 0.05
    tensors, there = packing.quantize(stack, matrix), packing.quantize(stack.cpu(), matrix)
    held = {name: tensor.cpu() for name, tensor in tensors.items()}
    same = [f"{(held[name] == tensor).float().mean():.4f}" for name, tensor in there.items()]
    say(f"codes and scales, {packing}: equal to the CPU's {', '.join(same)}")
    wrong = []
    for dtype in TOLERANCES:
        found = unpack(tensors, range(8), matrix, packing, dtype=dtype)
        if not torch.equal(found.cpu(), unpack(held, range(8), matrix, packing, dtype=dtype)):
            wrong.append(f"{packing} dequantized to {dtype}")
    return wrong


def compare_linear_layers() -> list[str]:
    """Return the linear layers whose product isn't that of bitsandbytes' own layers, bit for bit."""
    library: Any = bitsandbytes.nn
    wrong = []
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
            if type(layer) is library.Linear4bit or not torch.equal(usual, lean):
                wrong.append(f"linear layer, bias={has_bias}, {shape}")
    return wrong


def time_model(subject: Subject) -> None:
    """Print how long prefill and decode take in nf4, as a multiple of bfloat16."""
    config = cut_config(subject.name, subject.num_timed)
    variants = load_variants(config)
    for batch in (1, 8):
        times = measure_decode(variants, batch)
        report(subject, f"decode at batch {batch}", times, per=NUM_STEPS)
    ids = torch.randint(0, config.vocab_size, PREFILL, device=DEVICE)
    # No part of the hit matrices is copied for each row.
    del variants["bf16 batched_mm"]
    times = in_turns(lambda variant: variant.prefill(ids), variants)
    report(subject, "prefill 8 x 2048", times, per=1)


def report(subject: Subject, what: str, times: dict[str, list[float]], *, per: int) -> None:
    """Print the median of some times, and the median of their ratios to others in each round."""
    each = {
        name: statistics.median(taken) / per / subject.num_timed for name, taken in times.items()
    }
    shown = ", ".join(f"{name} {taken:.3f} ms" for name, taken in each.items())
    say(f"{subject.name} ({subject.num_timed} layers), {what}: {shown} a layer")
    for name in list(times)[1:]:
        ratios = [nf4 / bf16 for nf4, bf16 in zip(times["nf4"], times[name], strict=True)]
        middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
        say(f"  nf4 / {name}: {middle:.3f} ({least:.3f} to {most:.3f})")


def measure_decode(variants: dict[str, Variant], batch: int) -> dict[str, list[float]]:
    """Return milliseconds of some decode steps of each variant, in turns."""
    ids = torch.randint(0, 1000, (batch, CONTEXT), device=DEVICE)
    start_decode(variants, ids)

    def steps(variant: Variant) -> None:
        for _ in range(NUM_STEPS):
            variant.step(ids[:, :1])

    started = {name: variant.cache for name, variant in variants.items()}

    def start_again() -> None:
        # At the same lengths in each round: cuDNN's attention prepares itself for tens of
        # milliseconds whenever a length is new, which the first variant would pay for the others.
        for name, variant in variants.items():
            variant.cache = copy.deepcopy(started[name])

    return in_turns(steps, variants, before=start_again)


def in_turns(
    function: Callable[[Variant], None],
    variants: dict[str, Variant],
    *,
    before: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Return milliseconds that a function takes for each variant, in several rounds after one.

    Another variant comes first in each round.

    Args:
        function: What is timed.
        variants: The ways to run it.
        before: Called before each round.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(NUM_ROUNDS + 1):
        before()
        gc.collect()
        first = number % len(variants)
        names = list(variants)
        for name in (*names[first:], *names[:first]):
            variant = variants[name]
            variant.choose()
            torch.cuda.synchronize()
            start = time.perf_counter()
            function(variant)
            torch.cuda.synchronize()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


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
