"""Measure the cost of recording on a GPU, in published geometries with random weights.

    python -m benchmarks.tracing.recording_on_gpu [GEOMETRY ...] [--rounds N]

Each figure is the time of some passes inside a recorder, entering and leaving it included, over that
of the same passes without one: the median over rounds in which all variants take turns in one
process. "plain again" is the same ratio of passes without a recorder to others without one, with its
smallest and largest value: a difference within it means nothing. The last columns are the largest increase in the GPU's reserved memory and in the process's
resident memory while 40 more passes are recorded and their calls taken.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.tracing.geometries import make_config
from moetool import RoutingRecorder

NAMES = ("OLMoE-1B-7B", "Qwen3-30B-A3B", "Mixtral-8x7B")
# Bytes of a layer of Mixtral in bfloat16, to leave out layers where a GPU cannot hold them all.
MIXTRAL_LAYER_BYTES = 2.92e9
# Short passes wait for Python, whose speed varies.
ROUNDS, ROUNDS_OF_SHORT = 5, 11
NUM_NEW_TOKENS = 48
NUM_PASSES_FOR_MEMORY = 40


def main() -> None:
    """Measure the geometries named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", metavar="GEOMETRY", nargs="*", help=f"by default {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"by default {ROUNDS}, and {ROUNDS_OF_SHORT} of short passes"
    )
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n"
    )
    print(
        "| geometry | passes | plain, tokens/s | plain again | recording | with router scores "
        "| GPU memory | host memory |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in options.names or NAMES:
        model, label = build(name)
        vocabulary = model.config.vocab_size
        for title, run, num_tokens in (
            ("8 of 8 × 2048", read(model, 8, 2048, vocabulary, times=8), 8 * 8 * 2048),
            ("32 of 1 × 512", read(model, 1, 512, vocabulary, times=32), 32 * 512),
            (
                f"generate, 8 × 512 + {NUM_NEW_TOKENS}",
                write(model, 8, 512, vocabulary),
                8 * (512 + NUM_NEW_TOKENS),
            ),
        ):
            is_long = title.startswith("8 of")
            num_rounds = options.rounds or (ROUNDS if is_long else ROUNDS_OF_SHORT)
            plain, ratios = measure(model, run, num_rounds)
            again, recorded, scored = (statistics.median(each) for each in ratios)
            line = (
                f"| {label} | {title} | {num_tokens / plain:,.0f} | {again:.3f} ({min(ratios[0]):.2f} "
                f"to {max(ratios[0]):.2f}) | {recorded:.3f} | {scored:.3f} "
            )
            if is_long:
                on_gpu, on_host = memory(model, vocabulary)
                line += f"| {on_gpu:+.2f} % | {on_host:+.0f} MiB |"
            else:
                line += "| | |"
            print(line, flush=True)
        del model, run
        gc.collect()
        torch.cuda.empty_cache()


def build(name: str) -> tuple[Any, str]:
    """Return a model of a geometry, cut to the layers that fit, and its label."""
    label, config = name, make_config(name)
    if config.model_type == "mixtral":
        free = torch.cuda.mem_get_info()[0] - 12e9
        fitting = min(config.num_hidden_layers, int(free / MIXTRAL_LAYER_BYTES))
        if fitting < config.num_hidden_layers:
            label = f"{name}, {fitting} layers"
        config = make_config(name, num_hidden_layers=fitting)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return model, label


def read(
    model: Any, num_rows: int, num_columns: int, vocabulary: int, *, times: int
) -> Callable[[], None]:
    """Return a function that reads a batch several times."""
    ids = torch.randint(0, vocabulary, (num_rows, num_columns), device="cuda")
    mask = torch.ones_like(ids)

    def run() -> None:
        for _ in range(times):
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)

    return run


def write(model: Any, num_rows: int, num_columns: int, vocabulary: int) -> Callable[[], None]:
    """Return a function that continues a batch."""
    ids = torch.randint(0, vocabulary, (num_rows, num_columns), device="cuda")
    mask = torch.ones_like(ids)

    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    return run


def measure(
    model: Any, run: Callable[[], None], num_rounds: int
) -> tuple[float, list[list[float]]]:
    """Return the plain passes' median in seconds, and each other variant's ratios to them."""
    variants: list[Callable[[], AbstractContextManager[Any]]] = [
        nullcontext,
        nullcontext,
        lambda: RoutingRecorder(model),
        lambda: RoutingRecorder(model, keep_scores=True),
    ]
    times: list[list[float]] = [[] for _ in variants]
    for round_ in range(num_rounds + 1):
        for index, variant in enumerate(variants):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with variant() as recorder, torch.inference_mode():
                run()
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            if recorder is not None:
                recorder.take_calls()
            if round_:
                times[index].append(seconds)
    plain = times[0]
    ratios = [[b / a for a, b in zip(plain, other, strict=True)] for other in times[1:]]
    return statistics.median(plain), ratios


def memory(model: Any, vocabulary: int) -> tuple[float, float]:
    """Return the growth of the GPU's reserved memory in percent of all, and of the host's in MiB."""
    run = read(model, 8, 2048, vocabulary, times=1)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.inference_mode():
        run()
    torch.cuda.reset_peak_memory_stats()
    plain = torch.cuda.memory_reserved()
    resident = []
    with RoutingRecorder(model) as recorder, torch.inference_mode():
        for _ in range(NUM_PASSES_FOR_MEMORY):
            run()
            recorder.take_calls()
            resident.append(read_resident())
    grown = torch.cuda.max_memory_reserved() - plain
    total = torch.cuda.get_device_properties(0).total_memory
    return 100 * grown / total, resident[-1] - resident[NUM_PASSES_FOR_MEMORY // 4]


def read_resident() -> float:
    """Return the resident memory of this process in MiB."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
