"""Files of `torch.save`, read without running what they hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from moetool.interchange.imports.reading.text import (
    PICKLE_STARTS,
    damaged,
    open_input,
    quote,
    refuse_pickle,
)

ZIP_START = b"PK\x03\x04"


def load_torch(path: Path) -> Any:
    """Return what `torch.save` wrote, with tensors on the CPU and read from disk when used.

    Only tensors and plain values are accepted (`weights_only=True`).

    Raises:
        InputError: The file holds something else, is damaged, or is not of `torch.save`.
    """
    with open_input(path) as file:
        start = file.read(len(ZIP_START))
    if start.startswith(PICKLE_STARTS):
        raise refuse_pickle(path)
    if start != ZIP_START:
        raise damaged(quote(path), "is not a file of torch.save")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # A damaged archive can fail in any part of torch.
    except Exception as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            raise refuse_pickle(path) from error
        raise damaged(quote(path), "can't be read by torch", seen=error) from error


def take_tensor(value: Any, *, num_dimensions: int, name: str, source: str) -> NDArray[Any]:
    """Return a tensor of whole numbers as an array of its type, which stays on disk.

    Raises:
        InputError: It is something else.
    """
    import torch

    if (
        not isinstance(value, torch.Tensor)
        or value.layout is not torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
        or value.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
        or value.dim() != num_dimensions
    ):
        raise damaged(source, f"holds no tensor of {num_dimensions} dimensions as {name!r}")
    # A view may claim more numbers than the file has.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise damaged(source, f"holds a tensor {name!r} that is larger than its data")
    array: NDArray[Any] = value.detach().numpy()
    return array
