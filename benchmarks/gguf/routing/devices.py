"""Compare the decisions of a file whose layers are divided between devices with those on the CPU.

llama.cpp's RPC device is in place of a GPU, as in `llama_cpp_devices`: the graph is divided and tensors
are copied as for any GPU, and its server computes as the CPU does, so that all decisions and weights have
to be equal:

    python -m benchmarks.gguf.routing.devices vendor/llama.cpp
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.gguf.convert_families import import_converter
from benchmarks.gguf.llama_cpp_devices import _ENDPOINT, _LIBRARIES, _wait
from benchmarks.gguf.routing.compare import EXACTLY
from benchmarks.gguf.routing.demo_file import write_demo
from moetool.tracing.llama_cpp import worker
from moetool.tracing.llama_cpp.record import RecordedPrompt, record_prompts

_WORKER = (sys.executable, "-m", "benchmarks.gguf.routing.devices", "--work")
_SERVER = (sys.executable, "-m", "benchmarks.gguf.llama_cpp_devices", "--serve")
_PROMPTS: list[str | list[int]] = [
    "Der Himmel ist blau, weil",
    "def add(a, b):\n    return a + b\n" * 9,
]
# Numbers of layers on the device, of six and the head.
_DIVISIONS = (1, 4, 7)


def work() -> None:
    """Trace as moetool's own process does, with the stand-in among llama.cpp's devices."""
    rpc = ctypes.CDLL(str(_LIBRARIES / "libggml-rpc.so"))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    registry = ctypes.c_void_p(rpc.ggml_backend_rpc_add_server(_ENDPOINT))
    ctypes.CDLL(str(_LIBRARIES / "libggml.so")).ggml_backend_register(registry)
    worker.main()


def trace(path: Path, num_gpu_layers: int) -> list[RecordedPrompt]:
    """Return what is recorded with some layers on the stand-in."""
    options = replace(EXACTLY, num_gpu_layers=num_gpu_layers, max_new_tokens=5, ubatch=64)
    return list(record_prompts(path, _PROMPTS, options, command=_WORKER))


def main() -> None:
    """Print how many divisions give the same; exit with 1 if one does not."""
    if sys.argv[1:] == ["--work"]:
        work()
        return
    source = import_converter(Path(sys.argv[1]))
    server = subprocess.Popen(_SERVER, stdout=subprocess.DEVNULL)
    try:
        _wait()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "demo.gguf")
            write_demo(source, path)
            on_cpu = trace(path, 0)
            num_decisions = sum(len(each.tokens) * len(each.layers) for each in on_cpu)
            for num_layers in _DIVISIONS:
                for mine, other in zip(on_cpu, trace(path, num_layers), strict=True):
                    assert mine.tokens == other.tokens
                    for one, another in zip(mine.layers, other.layers, strict=True):
                        assert np.array_equal(one.experts, another.experts), num_layers
                        assert np.array_equal(one.weights, another.weights), num_layers
    finally:
        server.terminate()
        server.wait()
    sys.stdout.write(
        f"{num_decisions:,} decisions are equal under {len(_DIVISIONS)} divisions of layers\n"
    )


if __name__ == "__main__":
    main()
