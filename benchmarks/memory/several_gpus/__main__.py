"""Measure the memory of each of several GPUs that share a model, and compare the estimates with it.

    python -m benchmarks.memory.several_gpus measure FILE    # on all GPUs of a machine
    python -m benchmarks.memory.several_gpus measure FILE --kernels FOLDER    # checkpoints in fp8
    python -m benchmarks.memory.several_gpus compare FILE    # anywhere

Each way of sharing runs in separate processes, forked after the imports, because a model that was
deleted may leave some of its weights behind. The file gets a line of JSON for each rank and scenario.
`FOLDER` is that of `benchmarks.memory.formats`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.memory.several_gpus.estimated import compare
from benchmarks.memory.several_gpus.measuring import measure_all


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--kernels", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "measure":
        measure_all(arguments.file, kernels=arguments.kernels)
    else:
        compare(arguments.file)


if __name__ == "__main__":
    main()
