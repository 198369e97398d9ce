"""Compare the routing of a model on one GPU with that of the same model shared by two, and time both.

    python -m benchmarks.tracing.parallel_on_gpus [GEOMETRY ...]

Published geometries with random weights, cut to a few layers. Each is loaded on one GPU, and then by
two processes under transformers' tensor and expert plans, and records the same batches. Shared sums
round differently, so single decisions differ. They are counted, and so are those that differ on one
GPU if the batches are half as large, which is rounding as well. A tie is a decision in which the
scores of the experts that one of the runs chose alone are apart by at most one unit of rounding of
the token's largest score; the largest distance is given in these units.

In float32 sums over halves differ in their last bits only, and no decision should differ.

The last line is the whole command, `torchrun … -m moetool route-trace … --parallel expert`. Without
GPUs, tiny models run on the CPU, which shows no more than that this script works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.tracing.parallel_on_gpus.checkpoints import NAMES
from benchmarks.tracing.parallel_on_gpus.devices import HAS_GPU, NUM_GPUS
from benchmarks.tracing.parallel_on_gpus.measuring import work
from moetool.trace.reading.reader import open_trace
from moetool.tracing.parallel.launch import check_several
from moetool.tracing.plans import ParallelPlan

# The whole run has to end in time, whatever happens to its processes.
WORKER_TIMEOUT_S, COMMAND_TIMEOUT_S = 180, 50


def main() -> None:
    """Measure the geometries whose names contain a word of the command line, or all."""
    if "RANK" in os.environ:
        work(Path(sys.argv[1]), sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", metavar="GEOMETRY", nargs="*", help="a part of its name")
    words = parser.parse_args().words
    check_several(ParallelPlan.EXPERT, number=NUM_GPUS)
    card = torch.cuda.get_device_name() if HAS_GPU else "processes on the CPU"
    print(
        f"{NUM_GPUS} x {card}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    names = [name for name in NAMES if not words or any(word in name for word in words)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(NUM_GPUS), "-m"]
    try:
        run(
            [*launch, "benchmarks.tracing.parallel_on_gpus", folder, *names],
            timeout_s=WORKER_TIMEOUT_S,
        )
        whole_command(launch, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[object], *, timeout_s: float) -> None:
    """Run a command, and say how it ended if it failed."""
    try:
        code = subprocess.run([str(word) for word in command], timeout=timeout_s).returncode
    except subprocess.TimeoutExpired:
        print(f"(ended after {timeout_s} s)", flush=True)
        return
    if code:
        print(f"(ended with exit code {code})", flush=True)


def whole_command(launch: Sequence[str], folder: Path) -> None:
    """Run the command on the last checkpoint, and say what it wrote."""
    model = next(iter(folder.glob("*/config.json")), None)
    if model is None:
        return
    prompts, target = folder / "prompts.jsonl", folder / "trace.parquet"
    text = " ".join(p.read_text() for p in sorted(Path("sample_prompts").rglob("*.txt")))
    words = (text or "The cat sat on the mat. ").split()
    with prompts.open("w") as lines:
        for index in range(64):
            chosen = [words[(index * 97 + place) % len(words)] for place in range(200)]
            lines.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    began = time.perf_counter()
    command = [*launch, "moetool", "route-trace", model.parent, "--prompts", prompts]
    command += ["--parallel", "expert", "--batch-size", "16", "--max-new-tokens", "4", "-v"]
    print(f"\nmoetool route-trace {model.parent.name} --parallel expert:", flush=True)
    run([*command, "-o", target], timeout_s=COMMAND_TIMEOUT_S)
    if target.exists():
        metadata = open_trace(target).metadata
        assert metadata is not None
        print(
            f"{metadata.num_decisions:,} decisions, {metadata.parallel} x {metadata.parallel_size}, "
            f"{time.perf_counter() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
