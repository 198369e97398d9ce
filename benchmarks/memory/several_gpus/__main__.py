"""Measure the memory of each of several GPUs that share a model, and compare the estimates with it.

    python -m benchmarks.memory.several_gpus measure FILE    # on all GPUs of a machine
    python -m benchmarks.memory.several_gpus measure FILE --kernels FOLDER    # checkpoints in fp8
    python -m benchmarks.memory.several_gpus measure FILE --ranks 8 Qwen3    # on any number of GPUs
    python -m benchmarks.memory.several_gpus compare FILE    # anywhere

Each way of sharing runs in separate processes, forked after the imports, because a model that was
deleted may leave some of its weights behind. The file gets a line of JSON for each rank and scenario,
or the error of a rank. `FOLDER` is that of `benchmarks.memory.formats`.

With `--ranks`, each rank of the tensor and expert plans runs as if the others were there, by torch's
fake process group: its shards, kernels and buffers are those of a real run, its sums aren't, and
nothing of NCCL is in memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.memory.several_gpus.estimated import compare
from benchmarks.memory.several_gpus.measuring import Wishes, measure_all


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("words", nargs="*", help="parts of geometries' names")
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--within", type=float, default=330, help="seconds in all")
    arguments = parser.parse_intermixed_args()
    words = tuple(arguments.words)
    if arguments.action == "measure":
        measure_all(
            Wishes(arguments.file, arguments.within, arguments.kernels, arguments.ranks, words)
        )
    else:
        compare(arguments.file, words)


if __name__ == "__main__":
    main()
