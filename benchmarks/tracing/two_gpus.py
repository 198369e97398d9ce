"""Compare tracing with one process and with two, each with its own GPU and a copy of the model.

    python -m benchmarks.tracing.two_gpus [GEOMETRY] [NUM_PROMPTS]

Two processes make the same model with random weights, in a published geometry. Then rounds alternate
between a trace by the first process alone and one by both, from the prompts' tokens to the finished
file, after a short trace that warms up. Loading is left out. The traces are compared, row by row.
Without GPUs the demonstration model runs on the CPU, which shows no more than that this works.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers

from benchmarks.tracing.command import limit_tokens
from benchmarks.tracing.recording_on_gpu import build
from moetool.catalogue.names import demo_folder
from moetool.trace.metadata import TraceMetadata
from moetool.trace.schema import TRACE_SCHEMA, plain_schema
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.sink_choice import SinkChoice
from moetool.tracing.options import TraceOptions
from moetool.tracing.processes.processes import Processes, find_processes
from moetool.tracing.processes.shared_place import SharedPlace
from moetool.tracing.prompts.given import take_prompts
from moetool.tracing.prompts.tokens import TokenizedPrompt, tokenize_prompts
from moetool.tracing.run import trace_prompts
from moetool.tracing.running.own_device import choose_own_device

NUM_PROCESSES = 2
GEOMETRY, NUM_PROMPTS = "OLMoE-1B-7B", 1200
MOST_WORDS = 1100
ROUNDS = 3
# Enough for each process to have a window.
NUM_WARM_UP = 64
# Of the folder in which both processes write.
FOLDER_VARIABLE = "MOETOOL_BENCHMARK_FOLDER"


def main() -> None:
    """Start the processes, or be one of them."""
    if FOLDER_VARIABLE in os.environ:
        measure(Path(os.environ[FOLDER_VARIABLE]))
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [
        "--nproc-per-node",
        str(NUM_PROCESSES),
        "-m",
        "benchmarks.tracing.two_gpus",
        *sys.argv[1:],
    ]
    threads = str(max(1, (os.cpu_count() or 1) // NUM_PROCESSES))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"OMP_NUM_THREADS": threads, FOLDER_VARIABLE: folder}
        subprocess.run(launch, env={**os.environ, **settings}, check=True)


def measure(folder: Path) -> None:
    """Measure, as one of the processes, and print the figures in the first."""
    geometry = sys.argv[1] if len(sys.argv) > 1 else GEOMETRY
    num_prompts = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_PROMPTS
    processes, alone = find_processes(), Processes()
    device = choose_own_device(processes, None)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(demo_folder())
    if device.type == "cpu":
        model = transformers.AutoModelForCausalLM.from_pretrained(demo_folder()).eval()
        geometry = "demo"
    else:
        model, _ = build(geometry)
    prompts = make_prompts(num_prompts, tokenizer, most_tokens=limit_tokens(model))
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    seconds: dict[int, list[float]] = {1: [], NUM_PROCESSES: []}
    for round_ in range(ROUNDS + 1):
        for number, group in ((1, alone), (NUM_PROCESSES, processes)):
            is_warm_up = not round_
            own = prompts[:NUM_WARM_UP] if is_warm_up else prompts
            processes.barrier()
            start = time.perf_counter()
            if processes.is_first or group is processes:
                trace(model, tokenizer, own, folder / f"{number}.parquet", group)
            processes.barrier()
            if not is_warm_up:
                seconds[number].append(time.perf_counter() - start)
    if processes.is_first:
        show(f"{geometry}, {num_prompts} prompts", num_tokens, seconds)
        one, two = (pq.ParquetFile(folder / f"{number}.parquet") for number in seconds)
        verdict = "the same" if are_equal(one, two) else "NOT THE SAME"
        print(f"\n{one.metadata.num_rows:,} rows, {verdict}")
    processes.close()


def are_equal(one: pq.ParquetFile, other: pq.ParquetFile) -> bool:
    """Return whether two files have the same rows, whatever the order of their dictionaries."""
    plain = plain_schema(TRACE_SCHEMA)

    def compare(group: int) -> bool:
        tables = (file.read_row_group(group).cast(plain) for file in (one, other))
        return bool(next(tables).equals(next(tables)))

    return one.num_row_groups == other.num_row_groups and all(
        compare(group) for group in range(one.num_row_groups)
    )


def make_prompts(number: int, tokenizer: Any, *, most_tokens: int) -> list[TokenizedPrompt]:
    """Return prompts of random words."""
    words = Path("README.md").read_text(encoding="utf-8").split()
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(50, MOST_WORDS))) for _ in range(number)]
    return tokenize_prompts(
        take_prompts(texts),
        tokenizer,
        special_tokens="tokenizer",
        context_tokens=None,
        max_prompt_tokens=most_tokens,
    )


def trace(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenizedPrompt],
    target: Path,
    processes: Processes,
) -> None:
    """Trace prompts to a file, alone or as one of several processes."""
    choice = SinkChoice(target, replace_existing=True)
    place = SharedPlace(choice, processes) if processes.are_several else choice
    with place.open(TraceMetadata(), RunIdentity({"target": target.name})) as sink:
        trace_prompts(
            model,
            tokenizer,
            prompts,
            TraceOptions(),
            sink=sink,
            metadata=TraceMetadata(),
            processes=processes,
        )


def show(label: str, num_tokens: int, seconds: dict[int, list[float]]) -> None:
    """Print the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"\n{label}, {num_tokens:,} tokens\n\n| processes | s, median | tokens/s |\n|---:|---:|---:|"
    )
    for number, times in seconds.items():
        median = statistics.median(times)
        print(f"| {number} | {median:.2f} | {num_tokens / median:,.0f} |")
    ratios = sorted(one / two for one, two in zip(*seconds.values(), strict=True))
    print(
        f"\ntokens/s of {NUM_PROCESSES} over one: {statistics.median(ratios):.2f} "
        f"(from {ratios[0]:.2f} to {ratios[-1]:.2f}, {ROUNDS} rounds in turn)"
    )


if __name__ == "__main__":
    main()
