"""Run GGUF files with a CUDA build of llama.cpp, and print what the GPU's driver says it holds.

What a GPU holds besides llama.cpp's buffers (CUDA's context, cuBLAS, pools of kernels, recorded
graphs) is what its driver reports after each stage. Nothing else may run on the GPU. Prints a JSON line
for each case of a file of lines with `path` and `setting`:

    python -m benchmarks.gguf.cuda.memory CASES > benchmarks/gguf/measured/cuda_memory.jsonl
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]

from benchmarks.gguf.loading import (
    Setting,
    load_model,
    make_context,
    read_logged_sizes,
    start_backend,
)

_NUM_DECODED = 8


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Driver:
    """The GPUs' driver, through NVML."""

    def __init__(self) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._nvml.nvmlInit_v2()
        count = ctypes.c_uint()
        self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        self._handles = [ctypes.c_void_p() for _ in range(count.value)]
        for number, handle in enumerate(self._handles):
            self._nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
        name = ctypes.create_string_buffer(96)
        self._nvml.nvmlDeviceGetName(self._handles[0], name, 96)
        self.gpu = name.value.decode()

    def read_used_bytes(self) -> list[int]:
        """Return what is used on each GPU."""
        used = []
        for handle in self._handles:
            memory = _Memory()
            self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
            used.append(memory.used)
        return used


def run_stages(path: Path, setting: Setting, driver: Driver) -> Iterator[tuple[str, list[int]]]:
    """Yield what is used after each stage of a run, whose sizes are logged meanwhile."""
    yield "before", driver.read_used_bytes()
    start_backend()
    with load_model(path, setting) as model:
        yield "model", driver.read_used_bytes()
        with make_context(model, setting) as context:
            yield "context", driver.read_used_bytes()
            batch = llama_cpp.llama_batch_init(setting.ubatch, 0, 1)
            for number in range(2):
                _decode(context, batch, start=number * setting.ubatch, count=setting.ubatch)
                yield f"prefill {number + 1}", driver.read_used_bytes()
            for number in range(_NUM_DECODED):
                _decode(context, batch, start=2 * setting.ubatch + number, count=1)
            yield "decode", driver.read_used_bytes()


def _decode(context: Any, batch: Any, *, start: int, count: int) -> None:
    batch.n_tokens = count
    for place in range(count):
        batch.token[place], batch.pos[place] = 1 + (start + place) % 1000, start + place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = place == count - 1
    if llama_cpp.llama_decode(context, batch):
        raise RuntimeError("llama.cpp could not run a batch")
    llama_cpp.llama_synchronize(context)


def measure_here(case: dict[str, Any]) -> None:
    """Print the line of one case."""
    setting, driver = Setting(**case["setting"]), Driver()
    stages = dict(run_stages(Path(case["path"]), setting, driver))
    line = {
        "llama_cpp_python": llama_cpp.__version__,
        "gpu": driver.gpu,
        "model": case["model"],
        "setting": setting.to_dict(),
        "used_bytes": stages,
        "mib": read_logged_sizes(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


def main() -> None:
    """Measure each case in another process."""
    if sys.argv[1] == "--case":
        measure_here(json.loads(sys.argv[2]))
        return
    for case in Path(sys.argv[1]).read_text().splitlines():
        command = [sys.executable, "-m", "benchmarks.gguf.cuda.memory", "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stdout.write(done.stdout)
        sys.stdout.flush()
        if done.returncode:
            sys.stderr.write(f"{case}: {done.stderr[-600:]}\n")


if __name__ == "__main__":
    main()
