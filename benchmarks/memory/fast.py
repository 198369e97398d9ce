"""Time estimates beyond the imports, and a sweep in one process and in several.

    python -m benchmarks.memory.fast [MODEL ...]
    python -m benchmarks.memory.fast --catalogue [MODEL ...]
    python -m benchmarks.memory.fast --sweep MODEL

Each model is asked the simple questions, on all known GPUs and on one, and about eight GPUs under its
tensor-parallel plan. Seconds are those of the processor, and are shown as multiples of the imports'
too: other work on the machine slows both down. With `--catalogue`, each model is asked about one GPU
in a process that knows nothing from earlier questions and that may be copied, as that of the command.
Those seconds are the clock's: nothing else may run. The sweep has 20 scenarios, and its two ways take
turns in one run, so that their ratio means something there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from moetool.errors import UsageError

_MODELS = ("olmoe-1b-7b", "mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b")
_QUESTIONS: dict[str, dict[str, Any]] = {
    "all GPUs": {},
    "one GPU": {"gpu": "h200"},
    "eight GPUs": {"gpu": "8xh200", "parallel": "tensor"},
}
_NUM_ROUNDS = 3
_SIZES = (
    "--batch-size",
    "1,2,4,8,16",
    "--prompt-tokens",
    "128,512,1024,2048",
    "--new-tokens",
    "16",
)
# One process is made of the same command by letting it see a single core.
_ALONE = {0}


def main() -> None:
    """Print the times."""
    if sys.argv[1:2] == ["--sweep"]:
        compare_sweeps(sys.argv[2])
    elif sys.argv[1:2] == ["--catalogue"]:
        time_catalogue(sys.argv[2:])
    else:
        time_questions(sys.argv[1:] or list(_MODELS))


def time_questions(models: list[str]) -> None:
    """Print the processor's seconds of the imports, and of each question the least of three rounds."""
    start = time.process_time()
    import torch

    from moetool.memory.estimate import estimate_memory

    torch.set_num_threads(1)
    imports = time.process_time() - start
    print(f"imports: {imports:.2f} s")
    for model in models:
        for name, options in _QUESTIONS.items():
            ask = partial(estimate_memory, model, **options)
            try:
                first, *others = (_time(ask) for _ in range(_NUM_ROUNDS))
            except UsageError as error:
                print(f"{model}, {name}: {error.message}", flush=True)
                continue
            least = min(first, *others)
            print(
                f"{model}, {name}: {least:.2f} s, {least / imports:.2f} of the imports, "
                f"first {first:.2f} s",
                flush=True,
            )


def time_catalogue(models: list[str]) -> None:
    """Print the seconds that the command takes for one GPU beyond the imports, model by model.

    The imports include those of the model's own code, which a question about its parameters makes.
    """
    import torch

    from moetool import inspect_model
    from moetool.catalogue.published import read_published_models
    from moetool.memory.estimate import estimate_memory

    # With further threads, the process could not be copied.
    torch.set_num_threads(1)
    for model in models or sorted(read_published_models()):
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MOETOOL_CACHE"] = folder
            inspect_model(model)
            start = time.perf_counter()
            estimate_memory(model, gpu="h200", pausing=nullcontext)
            print(f"{model}: {time.perf_counter() - start:.2f} s", flush=True)
        os._exit(0)


def compare_sweeps(model: str) -> None:
    """Print the seconds of a sweep in as many processes as there are cores, and on one core."""
    command = [
        sys.executable,
        "-m",
        "moetool",
        "memory-estimate",
        model,
        *_SIZES,
        "--format",
        "json",
    ]
    cores = os.sched_getaffinity(0)

    def run(allowed: set[int]) -> bytes:
        os.sched_setaffinity(0, allowed)
        try:
            return subprocess.run(command, capture_output=True, check=True).stdout
        finally:
            os.sched_setaffinity(0, cores)

    outputs: list[bytes] = []
    seconds = {}
    for name, allowed in (("several", cores), ("one", _ALONE & cores or {min(cores)})):
        start = time.perf_counter()
        outputs.append(run(allowed))
        seconds[name] = time.perf_counter() - start
        print(f"{name} ({len(allowed)} cores): {seconds[name]:.1f} s", flush=True)
    print(
        f"ratio {seconds['one'] / seconds['several']:.2f}, same output: {outputs[0] == outputs[1]}"
    )


def _time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
