"""Plain torch in the place of compiled extensions that no package index has built.

MegaBlocks sorts and counts ids in `megablocks_ops`, and grouped_gemm multiplies in
`grouped_gemm_backend`: C++ and CUDA, which a machine without a compiler can't build. Everything else
of these packages is their own, Triton's programs and gradients included.

What runs here is hidden from whoever observes torch's operations, as it is in an extension.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

NAMES = ("megablocks_ops", "grouped_gemm_backend")


def replace_missing_extensions() -> tuple[str, ...]:
    """Put plain torch in the place of extensions that are not installed, and return their names."""
    replaced = []
    for name in NAMES:
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            continue
        module = ModuleType(name)
        for function in _FUNCTIONS[name]:
            setattr(module, function.__name__, _hide(function))
        sys.modules[name] = module
        replaced.append(name)
    return tuple(replaced)


def choose_first_settings() -> None:
    """Let Triton's interpreter run programs that choose their settings by timing them on a GPU."""
    # Not there on every machine that shows the help.
    import triton

    choose = triton.autotune

    def choose_first(configs: list[Any], key: list[str], **options: Any) -> Any:
        return choose(configs[:1], key, **options)

    triton.autotune = choose_first


def _hide(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def hidden(*args: Any) -> Any:
        with torch.no_grad(), _disable_current_modes():
            return function(*args)

    return hidden


def sort(x: torch.Tensor, _end_bit: int, values: torch.Tensor, order: torch.Tensor) -> None:
    """Sort numbers, equal ones in their order."""
    found, places = x.sort(stable=True)
    values.copy_(found)
    order.copy_(places)


def histogram(x: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Return how often each number occurs."""
    return torch.bincount(x.long(), minlength=num_bins).int()


def inclusive_cumsum(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    """Add up the numbers to each place, its own included."""
    out.copy_(x.cumsum(dim))


def exclusive_cumsum(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
    """Add up the numbers before each place."""
    out.copy_(x.cumsum(dim) - x)


def indices(
    padded_bins: torch.Tensor, block_size: int, num_rows: int, num_columns: int, out: torch.Tensor
) -> None:
    """Number the blocks of a sparse matrix: each expert's rows have blocks in its own columns."""
    rows = torch.arange(num_rows, device=out.device, dtype=padded_bins.dtype) * block_size
    experts = torch.searchsorted(padded_bins, rows, right=True)  # (num_rows,)
    columns = torch.arange(num_columns, device=out.device)
    out.copy_((experts[:, None] * num_columns + columns).flatten())


def gmm(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    sizes: torch.Tensor,
    trans_a: bool,
    trans_b: bool,
) -> None:
    """Multiply each group of rows by its own matrix, or by its rows of another one."""
    start = 0
    for group, size in enumerate(sizes.tolist()):
        rows = slice(start, start + size)
        if trans_a:
            out[group] = a[rows].mT @ b[rows]
        else:
            out[rows] = a[rows] @ (b[group].mT if trans_b else b[group])
        start += size


_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "megablocks_ops": (sort, histogram, inclusive_cumsum, exclusive_cumsum, indices),
    "grouped_gemm_backend": (gmm,),
}
