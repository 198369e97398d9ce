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
import re
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]
from transformers import AutoConfig

from benchmarks.gguf.mixtures import MIXTURES, MTP, WITH_MTP, write_mixture, write_with_mtp
from benchmarks.memory.gguf_models import write_gguf
from benchmarks.memory.llama_cpp_buffers import _COMMON, _FAMILIES
from moetool.checkpoint.gguf.header import read_gguf_header

_ENDPOINT = b"127.0.0.1:50961"
_LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
_BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|output) buffer size = +([\d.]+) MiB")
_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2, "f32": 0}
# The place of `offload_op` in a device's table of functions (ggml-backend-impl.h).
_OFFLOAD_OP = 11
# Places of a tensor's sizes and of its operation (ggml.h).
_SIZES_AT, _OPERATION_AT = 16, 80
_FEWEST_TOKENS = 32
_LOGGED: list[str] = []

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


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    _LOGGED.append(text.decode(errors="replace"))


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
    _LOGGED.clear()
    device.take_products(takes=takes)
    model_params = llama_cpp.llama_model_default_params()
    none = (ctypes.c_void_p * 1)(None)
    model_params.devices = ctypes.addressof(none if layers < 0 else device.list)
    model_params.n_gpu_layers = max(layers, 0)
    ggml = ctypes.CDLL(str(_LIBRARIES / "libggml-cpu.so"))
    ggml.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    # Pairs of a pattern and a buffer type; a pair of nulls ends them.
    overrides = (ctypes.c_void_p * (2 * min(cpu_moe, 64) + 2))()
    patterns = [
        ctypes.c_char_p(rf"blk\.{number}\.ffn_(up|down|gate|gate_up)_(ch|)exps".encode())
        for number in range(min(cpu_moe, 64))
    ]
    for number, pattern in enumerate(patterns):
        overrides[2 * number] = ctypes.cast(pattern, ctypes.c_void_p).value
        overrides[2 * number + 1] = ggml.ggml_backend_cpu_buffer_type()
    if cpu_moe:
        field = dict(llama_cpp.llama_model_params._fields_)["tensor_buft_overrides"]
        model_params.tensor_buft_overrides = ctypes.cast(overrides, field)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise RuntimeError("".join(_LOGGED[-8:]))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_ubatch, params.n_batch = context, ubatch, max(ubatch, sequences)
    params.n_seq_max, params.swa_full = sequences, False
    params.type_k, params.type_v = _TYPES[type_k], _TYPES[type_v]
    params.flash_attn_type = 1
    loaded = llama_cpp.llama_init_from_model(model, params)
    if not loaded:
        raise RuntimeError("".join(_LOGGED[-8:]))
    sizes: dict[str, float] = {}
    for where, kind, size in _BUFFER.findall("".join(_LOGGED)):
        place = "GPU" if where.startswith("RPC") else where
        sizes[f"{kind} {place}"] = round(sizes.get(f"{kind} {place}", 0) + float(size), 2)
    llama_cpp.llama_free(loaded)
    llama_cpp.llama_model_free(model)
    return sizes


def main() -> None:
    """Print a line for each family, mixture of types and setting."""
    if sys.argv[1:] == ["--serve"]:
        serve()
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gguf.llama_cpp_devices", "--serve"],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait()
        llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        device = StandIn()
        wanted = sys.argv[1:] or list(_FAMILIES)
        for family in wanted:
            _measure_family(family, device)
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
