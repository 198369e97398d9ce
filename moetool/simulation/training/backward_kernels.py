"""Temporary memory of kernels that only a backward pass runs, as seen on an H200 with torch 2.11."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from moetool.simulation.memory.cuda_kernels import Temporaries, find_temporaries

aten = torch.ops.aten

# Fewer indices are added to the embedding's gradient without sorting (`embedding_dense_backward_cuda`).
_MOST_UNSORTED_INDICES = 3072
_ROWS_PER_SEGMENT = 10
# An H200's.
_NUM_MULTIPROCESSORS = 132
_THREADS_OF_MULTIPROCESSOR = 2048
_THREADS_OF_REDUCTION = 512
_WARP = 32
_FEWEST_VALUES_PER_THREAD, _MOST_VALUES_PER_THREAD = 16, 256


def find_training_temporaries(
    operation: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Temporaries | None:
    """Return the memory that a kernel takes while it runs, forward or backward; None for nothing."""
    find = _TEMPORARIES.get(operation)
    return find_temporaries(operation, args, kwargs) if find is None else find(*args, **kwargs)


def _find_in_attention(*_: Any, **__: Any) -> Temporaries:
    return Temporaries(after=(256,))


def _find_in_attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> Temporaries:
    """Return the gradient of queries in float32, a number for each row, and those of shared heads.

    Where heads share keys and values, each has its own gradients first.
    """
    del grad
    num_rows = query.numel() // query.shape[-1]
    num_bytes = 4 * query.numel() + 4 * num_rows + 256
    if key.shape[1] != query.shape[1]:
        own_heads = query.shape[1] // key.shape[1]
        num_bytes += own_heads * (key.numel() + value.numel()) * query.element_size()
    return Temporaries(after=(num_bytes,))


def _find_in_embedding_backward(
    grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *_: Any
) -> Temporaries | None:
    """Return sorted indices, and the sums of rows that are the same, in segments and in float32."""
    count = indices.numel()
    if count <= _MOST_UNSORTED_INDICES:
        return None
    num_segments = count // _ROWS_PER_SEGMENT + min(count, num_weights)
    width = -(-grad.shape[-1] // _WARP) * _WARP
    sorted_bytes = 8 * count
    return Temporaries(
        before=(*(sorted_bytes,) * 3, _count_radix_sort_bytes(count, num_bits=64)),
        after=(sorted_bytes,) * 3 + (8 * num_segments, 4 * num_segments * width),
    )


def _find_in_sum(
    values: torch.Tensor, dims: Sequence[int] | None = None, *_: Any, **__: Any
) -> Temporaries | None:
    """Return the partial sums of blocks, where rows are added up (`setReduceConfig`)."""
    if not dims or not values.is_contiguous():
        return None
    reduced = sorted(dim % values.dim() for dim in dims)
    # Only sums over the first dimensions: in others, one block sees all values of an output.
    if reduced != list(range(len(reduced))) or len(reduced) == values.dim():
        return None
    num_values = math.prod(values.shape[: len(reduced)])
    num_outputs = math.prod(values.shape[len(reduced) :])
    if not num_values or not num_outputs:
        return None
    vector = next(size for size in (4, 2, 1) if num_outputs % size == 0)
    most_threads = _THREADS_OF_REDUCTION // vector
    columns, rows = (
        min(_last_power_of_2(number), most_threads)
        for number in (num_outputs // vector, num_values)
    )
    height = min(rows, most_threads // min(columns, _WARP))
    width = min(columns, most_threads // height)
    if num_values < min(height * _FEWEST_VALUES_PER_THREAD, _MOST_VALUES_PER_THREAD):
        return None
    per_thread = -(-num_values // height)
    grid = -(-(num_outputs // vector) // width)
    target = _NUM_MULTIPROCESSORS * (_THREADS_OF_MULTIPROCESSOR // (width * height))
    if per_thread < _MOST_VALUES_PER_THREAD or grid > target:
        return None
    num_blocks = max(
        min(-(-target // grid), -(-per_thread // _FEWEST_VALUES_PER_THREAD)),
        -(-per_thread // _MOST_VALUES_PER_THREAD),
    )
    if num_blocks < 2:
        return None
    return Temporaries(after=(4 * num_outputs * num_blocks * width * vector, 4 * grid))


def _find_in_index_put(
    values: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    added: torch.Tensor,
    accumulate: bool = False,
    *_: Any,
) -> Temporaries | None:
    """Return what sorting the indices takes, where values at equal indices are added up.

    That is the place of each index twice, both sorted, and a radix sort's memory.
    """
    del added
    given = [each for each in indices if each is not None]
    if not accumulate or not given:
        return None
    count = max(each.numel() for each in given)
    num_places = math.prod(
        size for size, each in zip(values.shape, indices, strict=False) if each is not None
    )
    sorting = _count_radix_sort_bytes(count, num_bits=max((num_places - 1).bit_length(), 1))
    return Temporaries(after=(8 * count,) * 4 + (sorting,))


def _find_in_softmax_backward(grad: torch.Tensor, *_: Any, **__: Any) -> Temporaries:
    """Return the products of the gradient and the output (`softmax_backward_cuda_out`)."""
    return Temporaries(after=(grad.numel() * grad.element_size(),))


def _count_radix_sort_bytes(count: int, *, num_bits: int) -> int:
    """Return the memory of a radix sort of int64 indices and their places, in bytes.

    Copies of both, 2 KiB of counters for each 8 bits, and a look-back of 1 KiB per tile of 4,096.
    """
    return 2 * 8 * count + 511 + 2048 * -(-num_bits // 8) + 1024 * -(-count // 4096)


def _last_power_of_2(number: int) -> int:
    return int(1 << (number.bit_length() - 1))


_TEMPORARIES: dict[Any, Callable[..., Temporaries | None]] = {
    aten._scaled_dot_product_cudnn_attention: _find_in_attention,
    aten._scaled_dot_product_cudnn_attention_backward: _find_in_attention_backward,
    aten.embedding_dense_backward: _find_in_embedding_backward,
    aten.sum: _find_in_sum,
    aten.index_put: _find_in_index_put,
    aten._softmax_backward_data: _find_in_softmax_backward,
}
