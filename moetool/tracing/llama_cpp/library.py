"""ggml's functions, and the fields of its tensors that no function returns."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from moetool.tracing.llama_cpp.faults import WorkerError

# Its structures change between versions. Of each, the version of ggml that it brings.
VERSIONS = {"0.3.36": "0.25.3"}

# Places of fields in `struct ggml_tensor` (ggml.h), and the size of one with what precedes it.
_SOURCES_AT, _VIEW_SOURCE_AT, _DATA_AT, _NAME_AT = 152, 232, 248, 256
_POINTER_BYTES, _NUM_SOURCES, _NAME_BYTES = 8, 10, 64
_OVERHEAD = 368
_GPUS = (1, 2)


class Ggml:
    """The library, and tensors by their addresses.

    Args:
        folder: Where its files are.

    Raises:
        WorkerError: They are not there, or tensors have another size.
    """

    def __init__(self, folder: Path) -> None:
        self._library = _load(folder, "ggml-base")
        self._devices = _load(folder, "ggml")
        for name in ("ggml_get_name", "ggml_get_data"):
            getattr(self._library, name).restype = ctypes.c_void_p
        for name in ("ggml_nbytes", "ggml_tensor_overhead"):
            getattr(self._library, name).restype = ctypes.c_size_t
        for name in ("ggml_nelements", "ggml_nrows"):
            getattr(self._library, name).restype = ctypes.c_int64
        for name in ("ggml_op_desc", "ggml_version"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._devices.ggml_backend_dev_count.restype = ctypes.c_size_t
        self._devices.ggml_backend_dev_get.restype = ctypes.c_void_p
        self._is_checked = False
        self.version = self._library.ggml_version().decode(errors="replace")
        if self._library.ggml_tensor_overhead() != _OVERHEAD:
            raise _unknown_layout()

    def has_gpu(self) -> bool:
        """Return whether one of its devices is a GPU."""
        devices = self._devices
        return any(
            devices.ggml_backend_dev_type(
                ctypes.c_void_p(devices.ggml_backend_dev_get(ctypes.c_size_t(number)))
            )
            in _GPUS
            for number in range(devices.ggml_backend_dev_count())
        )

    def name(self, tensor: int) -> str:
        """Return a tensor's name."""
        place = self._library.ggml_get_name(ctypes.c_void_p(tensor))
        if not self._is_checked:
            self._check_layout(tensor, place)
        return ctypes.string_at(place).decode(errors="replace")

    def operation(self, tensor: int) -> str:
        """Return the operation that computes a tensor, such as `MUL_MAT_ID`."""
        text: bytes = self._library.ggml_op_desc(ctypes.c_void_p(tensor))
        return text.decode(errors="replace")

    def sources(self, tensor: int) -> list[int]:
        """Return what a tensor is computed from; 0 where there is nothing."""
        content = (ctypes.c_void_p * _NUM_SOURCES).from_address(tensor + _SOURCES_AT)
        return [address or 0 for address in content]

    def view_source(self, tensor: int) -> int:
        """Return the tensor whose memory another one is a part of; 0 if it has its own."""
        return ctypes.c_void_p.from_address(tensor + _VIEW_SOURCE_AT).value or 0

    def rows_and_columns(self, tensor: int) -> tuple[int, int]:
        """Return the number of a tensor's rows, and of the numbers in each."""
        pointer = ctypes.c_void_p(tensor)
        rows = int(self._library.ggml_nrows(pointer))
        return rows, int(self._library.ggml_nelements(pointer)) // max(rows, 1)

    def read(self, tensor: int) -> Any:
        """Return the content of a tensor that is one piece, from whatever device it is on."""
        pointer = ctypes.c_void_p(tensor)
        num_bytes = self._library.ggml_nbytes(pointer)
        content = (ctypes.c_char * num_bytes)()
        self._library.ggml_backend_tensor_get(
            pointer, content, ctypes.c_size_t(0), ctypes.c_size_t(num_bytes)
        )
        return content

    def _check_layout(self, tensor: int, name_at: int) -> None:
        """Compare two fields with the functions that return them.

        Raises:
            WorkerError: They are elsewhere.
        """
        data = self._library.ggml_get_data(ctypes.c_void_p(tensor))
        field = ctypes.c_void_p.from_address(tensor + _DATA_AT).value
        if name_at - tensor != _NAME_AT or data != field:
            raise _unknown_layout()
        self._is_checked = True


def _load(folder: Path, name: str) -> ctypes.CDLL:
    for pattern in (f"lib{name}.so", f"lib{name}.dylib", f"{name}.dll", f"lib{name}.dll"):
        path = folder / pattern
        if path.exists():
            return ctypes.CDLL(str(path))
    raise WorkerError(
        f"llama-cpp-python has no library {name} in its folder", hint="Install it again."
    )


def _unknown_layout() -> WorkerError:
    return WorkerError(
        "this build of llama.cpp lays out its tensors in another way than is known",
        hint="Install llama-cpp-python as it comes from its source distribution.",
    )
