"""Measure the cost of tracing on this machine, in one run, and print it as Markdown.

    python benchmarks/tracing/route_trace.py

The ratios are the result; the absolute figures show what they rest on.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from moetool import RoutingRecorder
from moetool.catalogue.names import demo_folder
from moetool.tracing.prompts.prompts import read_prompts
from moetool.tracing.prompts.tokens import tokenize_prompts
from moetool.tracing.running.batches import Batch, make_batches

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE_PROMPTS = REPOSITORY / "sample_prompts"
PAIRS = 7
HELP_RUNS = 9


def main() -> None:
    """Run every measurement."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    print("\n| measured | figure |\n|---|---|")
    for measure in (measure_help, measure_recording, measure_memory):
        for name, figure in measure():
            print(f"| {name} | {figure} |", flush=True)


def measure_help() -> list[tuple[str, str]]:
    """Time `moetool --help` and an empty Python process."""
    empty = [time_process([sys.executable, "-c", "pass"]) for _ in range(HELP_RUNS)]
    shown = [time_process([sys.executable, "-m", "moetool", "--help"]) for _ in range(HELP_RUNS)]
    return [
        (
            "`moetool --help`, wall, median",
            f"{statistics.median(shown):.2f} s ({statistics.median(empty):.2f} s for an empty "
            "Python process)",
        )
    ]


def time_process(command: list[str]) -> float:
    """Return a command's wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure_recording() -> list[tuple[str, str]]:
    """Time the demonstration checkpoint's forward with and without the recorder, in turn."""
    model = AutoModelForCausalLM.from_pretrained(demo_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    prompts = tokenize_prompts(
        read_prompts(str(SAMPLE_PROMPTS)),
        tokenizer,
        special_tokens="tokenizer",
        context_tokens=None,
    )
    batches = list(make_batches(prompts, batch_size=8, pad_token_id=0))
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)

    def forward_all(context: Callable[[], AbstractContextManager[object]]) -> float:
        start = time.perf_counter()
        with context(), torch.inference_mode():
            for batch in batches:
                run_forward(model, batch)
        return time.perf_counter() - start

    forward_all(nullcontext)
    plain, recorded = [], []
    for _ in range(PAIRS):
        plain.append(forward_all(nullcontext))
        recorded.append(forward_all(lambda: RoutingRecorder(model)))
    ratios = sorted(with_ / without for with_, without in zip(recorded, plain, strict=True))
    return [
        ("plain forward, median", f"{num_tokens / statistics.median(plain):,.0f} tokens/s"),
        (
            "forward while recording, median",
            f"{num_tokens / statistics.median(recorded):,.0f} tokens/s",
        ),
        (
            f"time with over time without recording, {PAIRS} pairs in turn",
            f"{statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})",
        ),
    ]


def run_forward(model: torch.nn.Module, batch: Batch) -> None:
    """Run one batch as route-trace does."""
    model(
        input_ids=torch.from_numpy(batch.input_ids),
        attention_mask=torch.from_numpy(batch.attention_mask),
        use_cache=False,
        logits_to_keep=1,
    )


def measure_memory() -> list[tuple[str, str]]:
    """Measure the peak memory of route-trace at 10 and at 1,000 prompts."""
    lines = [
        json.loads(line)
        for file in sorted(SAMPLE_PROMPTS.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    # The same ten prompts again and again, so that only their number differs.
    ten = sorted(lines, key=lambda line: len(line["text"]))[-10:]
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_prompts in (10, 1000):
            prompts = Path(folder) / f"{num_prompts}.jsonl"
            prompts.write_text(
                "".join(
                    json.dumps({**ten[index % 10], "id": index}) + "\n"
                    for index in range(num_prompts)
                ),
                encoding="utf-8",
            )
            peaks[num_prompts] = trace(prompts, Path(folder) / f"{num_prompts}.parquet")
    return [
        (
            "peak RSS of route-trace at 10 and at 1,000 prompts",
            f"{peaks[10] / 2**20:,.0f} MiB and {peaks[1000] / 2**20:,.0f} MiB "
            f"(ratio {peaks[1000] / peaks[10]:.2f})",
        )
    ]


def trace(prompts: Path, output: Path) -> int:
    """Trace the demonstration checkpoint in a separate process; return its peak RSS in bytes."""
    code = (
        "import resource, sys\n"
        "from moetool.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    arguments = ["route-trace", "demo", "--prompts", str(prompts), "-o", str(output), "-q"]
    completed = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    # Linux counts in KiB, macOS in bytes.
    return int(completed.stdout) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
