"""Load GGUF files with llama.cpp on a CPU and a stand-in for a GPU, and print its buffer sizes.

The stand-in is llama.cpp's own RPC device, whose server is another process on this machine: llama.cpp
places weights, caches and operations on it as on any GPU. It is made to take over products with
weights of the host, as CUDA does, by a function in its table. Needs llama-cpp-python built with
`CMAKE_ARGS=-DGGML_RPC=ON`, and gguf. Prints a JSON line for each file and setting:

    python -m benchmarks.gguf.llama_cpp_devices > benchmarks/gguf/measured/llama_cpp_devices.jsonl
"""

from __future__ import annotations

import base64
import ctypes
import json
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]
from transformers import AutoConfig

from benchmarks.gguf.loading import Setting as Flags
from benchmarks.gguf.loading import load_model, make_context, read_logged_sizes, start_backend
from benchmarks.gguf.mixtures import MIXTURES, MTP, WITH_MTP, write_mixture, write_with_mtp
from benchmarks.memory.gguf_models import write_gguf
from benchmarks.memory.llama_cpp_buffers import _COMMON, _FAMILIES
from moetool.checkpoint.gguf.header import read_gguf_header

_ENDPOINT = b"127.0.0.1:50961"
_LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
# The place of `offload_op` in a device's table of functions (ggml-backend-impl.h).
_OFFLOAD_OP = 11
# Places of a tensor's sizes and of its operation (ggml.h).
_SIZES_AT, _OPERATION_AT = 16, 80
_FEWEST_TOKENS = 32

# Layers on the GPU (-1: no GPU there), layers whose experts are on the CPU, context, micro-batch,
# sequences, types of keys and values, whether the GPU takes over products.
Setting = tuple[int, int, int, int, int, str, str, bool]
SETTINGS: tuple[Setting, ...] = (
    (-1, 0, 4096, 512, 1, "f16", "f16", False),
    (-1, 0, 2048, 64, 2, "q8_0", "q4_0", False),
    (99, 0, 4096, 512, 1, "f16", "f16", False),
    (99, 0, 5000, 128, 4, "q8_0", "q8_0", True),
    (99, 2, 4096, 512, 1, "f16", "f16", False),
    (99, 2, 4096, 512, 1, "f16", "f16", True),
    (99, 99, 8192, 1024, 1, "q8_0", "f16", True),
    (2, 0, 4096, 512, 1, "f16", "f16", False),
    (2, 0, 4096, 512, 1, "f16", "f16", True),
    (0, 0, 4096, 256, 2, "f16", "f16", True),
    (3, 1, 1024, 16, 1, "f16", "f16", True),
    (4, 3, 2048, 512, 1, "f16", "f16", True),
)


def serve() -> None:
    """Be the device's server until the process is ended."""
    llama_cpp.llama_backend_init()
    base = ctypes.CDLL(str(_LIBRARIES / "libggml.so"))
    rpc = ctypes.CDLL(str(_LIBRARIES / "libggml-rpc.so"))
    base.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(base.ggml_backend_dev_by_type(0))
    rpc.ggml_backend_rpc_start_server(
        _ENDPOINT, None, ctypes.c_size_t(1), ctypes.c_size_t(1), devices
    )


class StandIn:
    """The stand-in for a GPU, seen from the process that loads models."""

    def __init__(self) -> None:
        self._ggml = ctypes.CDLL(str(_LIBRARIES / "libggml.so"))
        base = ctypes.CDLL(str(_LIBRARIES / "libggml-base.so"))
        rpc = ctypes.CDLL(str(_LIBRARIES / "libggml-rpc.so"))
        rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
        registry = ctypes.c_void_p(rpc.ggml_backend_rpc_add_server(_ENDPOINT))
        base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
        self.device = base.ggml_backend_reg_dev_get(registry, ctypes.c_size_t(0))
        base.ggml_op_name.restype = ctypes.c_char_p
        kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)

        def offload(_device: int, tensor: int) -> bool:
            sizes = (ctypes.c_int64 * 4).from_address(tensor + _SIZES_AT)
            name = base.ggml_op_name(ctypes.c_int32.from_address(tensor + _OPERATION_AT).value)
            if name == b"GET_ROWS":
                return False
            if name == b"MUL_MAT":
                return sizes[1] >= _FEWEST_TOKENS
            if name in (b"MUL_MAT_ID", b"ROPE"):
                return sizes[2] >= _FEWEST_TOKENS
            return sizes[1] * sizes[2] * sizes[3] >= _FEWEST_TOKENS

        self._offload = kind(offload)
        self.list = (ctypes.c_void_p * 2)(self.device, None)

    def take_products(self, *, takes: bool) -> None:
        """Let the device take over products with weights of the host, or not."""
        place = ctypes.c_void_p.from_address(self.device + 8 * _OFFLOAD_OP)
        place.value = ctypes.cast(self._offload, ctypes.c_void_p).value if takes else None


def measure(path: Path, setting: Setting, device: StandIn) -> dict[str, float]:
    """Return the buffer sizes that llama.cpp logs for a file, in MiB with two decimals, by kind."""
    layers, cpu_moe, context, ubatch, sequences, type_k, type_v, takes = setting
    flags = Flags(max(layers, 0), cpu_moe, context, ubatch, sequences, type_k, type_v)
    return measure_flags(path, flags, device, has_gpu=layers >= 0, takes_products=takes)


def measure_flags(
    path: Path, flags: Flags, device: StandIn, *, has_gpu: bool, takes_products: bool
) -> dict[str, float]:
    """Return the same for flags.

    Args:
        path: The file.
        flags: Of llama.cpp.
        device: The stand-in.
        has_gpu: Whether llama.cpp sees it.
        takes_products: Whether it takes over products with weights of the host.
    """
    device.take_products(takes=takes_products)
    devices = device.list if has_gpu else (ctypes.c_void_p * 1)(None)
    with load_model(path, flags, devices) as model, make_context(model, flags):
        sizes: dict[str, float] = {}
        for name, size in read_logged_sizes().items():
            kind, _, where = name.partition(" ")
            place = f"{kind} {'GPU' if where.startswith('RPC') else where}"
            sizes[place] = round(sizes.get(place, 0) + size, 2)
    return sizes


def main() -> None:
    """Print a line for each family, mixture of types and setting."""
    if sys.argv[1:] == ["--serve"]:
        serve()
        return
    with stand_in() as device:
        for family in sys.argv[1:] or list(_FAMILIES):
            _measure_family(family, device)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Yield the device, whose server is another process."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gguf.llama_cpp_devices", "--serve"],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait()
        start_backend()
        yield StandIn()
    finally:
        server.terminate()


def _wait() -> None:
    """Wait until the server listens."""
    host, _, port = _ENDPOINT.decode().partition(":")
    for _ in range(600):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def _measure_family(family: str, device: StandIn) -> None:
    config = AutoConfig.for_model(family, **_COMMON | _FAMILIES[family])
    if family == "deepseek_v2":
        config.num_hidden_layers = 27
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain.gguf")
        write_gguf(config, plain, tensor_type="f16")
        mixtures = [*MIXTURES, *([MTP] if family in WITH_MTP else [])]
        for number, mixture in enumerate(mixtures):
            path = Path(folder, "model.gguf")
            if mixture == MTP:
                write_with_mtp(read_gguf_header(plain), path)
            else:
                write_mixture(read_gguf_header(plain), path, mixture)
            header = read_gguf_header(path)
            with path.open("rb") as file:
                content = file.read(header.header_bytes)
            packed = base64.b64encode(zlib.compress(content, 9)).decode()
            # All settings for some mixtures, and the first of each kind for the others.
            has_all = number < 2 or mixture == MTP
            settings = SETTINGS if has_all else (SETTINGS[0], SETTINGS[5], SETTINGS[8])
            for setting in settings:
                try:
                    found = measure(path, setting, device)
                except (RuntimeError, OSError) as error:
                    sys.stderr.write(f"{family} {mixture} {setting}: {error}\n")
                    continue
                line = {
                    "llama_cpp_python": version("llama-cpp-python"),
                    "family": family,
                    "mixture": mixture,
                    "setting": setting,
                    "file_bytes": header.file_bytes,
                    "header": packed,
                    "mib": found,
                }
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
                packed = ""


if __name__ == "__main__":
    main()
