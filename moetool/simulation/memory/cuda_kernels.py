"""Facts about operations on a GPU: one kernel or several, and their temporary memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten

_PRODUCTS = frozenset({aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addbmm, aten._grouped_mm})
# torch's default on every architecture (`parseCUDABlasLtWorkspaceSize`), seen on an H200 with torch
# 2.11. Versions in which cublasLt uses cuBLAS's workspace take nothing.
LT_WORKSPACE_BYTES = 1024 * 2**10
# torch defines them by other operations, but on a GPU they are one kernel, or zeros that are written
# to.
_FUSED = frozenset({aten.scaled_dot_product_attention, aten.one_hot})


@dataclass(frozen=True)
class Temporaries:
    """The sizes in bytes of the blocks that a kernel takes while it runs.

    Attributes:
        before: Taken before its results.
        after: Taken after its results.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@functools.cache
def is_one_kernel(operation: Any) -> bool:
    """Return whether an operation runs as one kernel, rather than as other operations.

    Args:
        operation: An overload of torch's dispatcher.
    """
    if operation.overloadpacket in _FUSED:
        return True
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    # Those that the CPU has a kernel for have one on a GPU (`silu_backward`).
    return has_kernel(operation.name(), "CPU") or not has_kernel(
        operation.name(), "CompositeImplicitAutograd"
    )


def needs_workspace(operation: Any) -> bool:
    """Return whether an operation is a matrix product by cuBLAS, which keeps a workspace."""
    return operation in _PRODUCTS


def needs_lt_workspace(operation: Any, args: Sequence[Any]) -> bool:
    """Return whether an operation is a product with a bias by cublasLt, which keeps a workspace.

    torch uses cublasLt if the bias is one row and the matrix that rows are multiplied by has more than
    one row and column (`addmm_out_cuda_impl`).
    """
    if operation is not aten.addmm:
        return False
    bias, rows, matrix = args[:3]
    return bool(
        bias.dim() == 1 and bias.is_contiguous() and rows.dim() == 2 and min(matrix.shape) > 1
    )


def find_temporaries(
    operation: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Temporaries | None:
    """Return the memory that a kernel takes while it runs; None if it takes nothing."""
    find = _TEMPORARIES.get(operation)
    return None if find is None else find(*args, **kwargs)


def _find_in_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Temporaries:
    """Return the random number state, the mask in the query's dtype, and a workspace."""
    del key, value
    mask: tuple[int, ...] = ()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        mask = (attn_mask.numel() * query.element_size(),)
    return Temporaries(before=(*mask, 8, 8), after=(256,))


def _find_in_sort(rows: torch.Tensor, *_: Any, **__: Any) -> Temporaries:
    """Return the indices that are sorted, and the memory for a radix sort of one long row."""
    num_rows = rows.numel()
    indices = num_rows * 8
    if rows.dim() != 1 or num_rows <= 4096:
        return Temporaries(after=(indices,))
    return Temporaries(after=(indices, count_sort_bytes(num_rows, rows.element_size())))


def count_sort_bytes(num_rows: int, key_bytes: int) -> int:
    """Return the memory for a radix sort of one long row, without the indices that are sorted.

    That is two copies of keys and indices, counters, and a look-back of 1 KiB per tile of 4,608.
    """
    copies = 2 * _round_up(num_rows * key_bytes, 256)
    return copies + 16895 + 1024 * math.ceil(num_rows / 4608)


def _find_in_histogram(*_: Any, **__: Any) -> Temporaries:
    return Temporaries(after=(1023,))


def _find_in_grouped_mm(
    rows: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor | None = None, *_: Any, **__: Any
) -> Temporaries:
    """Return the addresses and shapes of each expert's product, and a workspace."""
    del rows
    num_experts = weights.shape[0] if offs is None else offs.shape[0]
    return Temporaries(after=(60 * num_experts, 67584))


def _find_in_convolution(rows: torch.Tensor, *_: Any, **__: Any) -> Temporaries | None:
    """Return the size of a copy of its input, if that isn't contiguous."""
    return (
        None if rows.is_contiguous() else Temporaries(before=(rows.numel() * rows.element_size(),))
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


_TEMPORARIES: dict[Any, Callable[..., Temporaries | None]] = {
    aten.scaled_dot_product_attention: _find_in_attention,
    aten.sort: _find_in_sort,
    aten.histc: _find_in_histogram,
    aten._grouped_mm: _find_in_grouped_mm,
    aten.convolution: _find_in_convolution,
}
