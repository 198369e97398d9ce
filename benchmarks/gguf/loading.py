"""Load a GGUF file with llama.cpp under its flags, and read the buffer sizes that it logs."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]

_LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")
_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2, "f32": 0, "bf16": 30}
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_MOST_MOVED = 64
_LOGGED: list[str] = []


@dataclass(frozen=True)
class Setting:
    """The flags of a run.

    Attributes:
        gpu_layers: `--n-gpu-layers`.
        cpu_moe: `--n-cpu-moe`.
        context: `--ctx-size`.
        ubatch: `--ubatch-size`.
        sequences: `--parallel`.
        type_k: `--cache-type-k`.
        type_v: `--cache-type-v`.
        flash: `--flash-attn`: 1 for on, 0 for off, -1 for what llama.cpp chooses.
        split_mode: Whether layers or rows are divided: `--split-mode`.
        tensor_split: `--tensor-split`; empty for what llama.cpp chooses.
    """

    gpu_layers: int
    cpu_moe: int
    context: int
    ubatch: int
    sequences: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    flash: int = 1
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the flags, without those of several GPUs where they are not given."""
        flags = asdict(self)
        if not self.tensor_split:
            del flags["tensor_split"]
        if self.split_mode == "layer":
            del flags["split_mode"]
        return flags


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    _LOGGED.append(text.decode(errors="replace"))


def start_backend() -> None:
    """Have llama.cpp log to this module, and begin."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@contextmanager
def load_model(path: Path, setting: Setting, devices: Any = None) -> Iterator[Any]:
    """Yield a model.

    Args:
        path: The file.
        setting: The flags.
        devices: A list of devices that ends with a null; None for all GPUs.

    Raises:
        RuntimeError: llama.cpp can't load it; the message is its log's end.
    """
    _LOGGED.clear()
    params = llama_cpp.llama_model_default_params()
    if devices is not None:
        params.devices = ctypes.addressof(devices)
    params.n_gpu_layers = setting.gpu_layers
    params.split_mode = _SPLIT_MODES[setting.split_mode]
    shares = (ctypes.c_float * 16)(*setting.tensor_split)
    if setting.tensor_split:
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    cpu = ctypes.CDLL(str(_LIBRARIES / "libggml-cpu.so"))
    cpu.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    # Pairs of a pattern and a buffer type; a pair of nulls ends them.
    count = min(setting.cpu_moe, _MOST_MOVED)
    overrides = (ctypes.c_void_p * (2 * count + 2))()
    patterns = [
        ctypes.c_char_p(rf"blk\.{number}\.ffn_(up|down|gate|gate_up)_(ch|)exps".encode())
        for number in range(count)
    ]
    for number, pattern in enumerate(patterns):
        overrides[2 * number] = ctypes.cast(pattern, ctypes.c_void_p).value
        overrides[2 * number + 1] = cpu.ggml_backend_cpu_buffer_type()
    if count:
        field = dict(llama_cpp.llama_model_params._fields_)["tensor_buft_overrides"]
        params.tensor_buft_overrides = ctypes.cast(overrides, field)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError("".join(_LOGGED[-8:]))
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def make_context(model: Any, setting: Setting) -> Iterator[Any]:
    """Yield a context of a model.

    Raises:
        RuntimeError: llama.cpp can't make it; the message is its log's end.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_ubatch = setting.context, setting.ubatch
    params.n_batch = max(setting.ubatch, setting.sequences)
    params.n_seq_max, params.swa_full = setting.sequences, False
    params.type_k, params.type_v = _TYPES[setting.type_k], _TYPES[setting.type_v]
    params.flash_attn_type = setting.flash
    loaded = llama_cpp.llama_init_from_model(model, params)
    if not loaded:
        raise RuntimeError("".join(_LOGGED[-8:]))
    try:
        yield loaded
    finally:
        llama_cpp.llama_free(loaded)


def read_logged_sizes() -> dict[str, float]:
    """Return the buffer sizes that were logged since the model was loaded, in MiB, by kind and place.

    Each was logged with two decimals.
    """
    sizes: dict[str, float] = {}
    for where, kind, size in _BUFFER.findall("".join(_LOGGED)):
        name = f"{kind} {where}"
        sizes[name] = round(sizes.get(name, 0) + float(size), 2)
    return sizes
