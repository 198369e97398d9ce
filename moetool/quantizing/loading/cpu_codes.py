"""Codes of weights in 4 bits on the CPU: those of bitsandbytes, looked up instead of searched for.

bitsandbytes scales each block by the reciprocal of its largest weight, and takes the number of
midpoints between neighbouring values that a scaled weight exceeds. The search takes most of the time.
Here a table knows that number from the upper half of a float's bits. Where a midpoint has the same
upper half, one comparison decides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from moetool.quantizing.kinds import Quantization

# As in bitsandbytes, whose blocks of zeros have no reciprocal either.
_LEAST = 1e-38
_NUM_HALVES = 2**16


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Yield threads in each of which torch uses no others, as many as it uses by default.

    Shared among threads, small operations take longer than alone, and many times as long while other
    processes are busy.
    """
    num_threads = torch.get_num_threads()
    # New threads have the number that was set last.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(num_threads)


def quantize_blocks(
    weights: torch.Tensor, quantization: Quantization, *, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of whole blocks of weights, two to a byte, and the blocks' scales.

    Args:
        weights: On the CPU, contiguous, in a float dtype.
        quantization: The format, in 4 bits.
        block_size: Weights of a block, a power of two.

    Returns:
        # (num_blocks * block_size / 2,), (num_blocks,)
    """
    below, midpoint, order = _make_tables(quantization)
    blocks = weights.view(-1, block_size).float()
    absmax = _find_largest(blocks)
    scaled = blocks * (1.0 / absmax.clamp(min=_LEAST)).unsqueeze(1)
    scaled = scaled.clamp_(-1, 1).view(-1)
    halves = scaled.view(torch.int32) >> 16
    halves += _NUM_HALVES // 2
    codes = below.index_select(0, halves)
    codes += scaled > midpoint.index_select(0, halves)
    packed = (codes[::2] << 4) | codes[1::2]
    if order is not None:
        packed = order.index_select(0, packed.int())
    return packed, absmax


def _find_largest(blocks: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value of each block, in fewer steps than along short rows."""
    largest = blocks.abs()
    while largest.shape[1] > 1:
        first, second = largest.chunk(2, dim=1)
        largest = torch.maximum(first, second)
    return largest.squeeze(1)


@functools.cache
def _make_tables(
    quantization: Quantization,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return what the upper half of a float's bits says about its code.

    Returns:
        The number of midpoints below all floats with an upper half; the midpoint among them, if
        there is one, else infinity; and both codes of a byte that holds two such numbers, unless
        the format's values are in ascending order. Halves are counted as signed integers.
        # (2**16,), (2**16,), (256,)
    """
    import bitsandbytes.functional as kernels

    functions: Any = kernels
    values: torch.Tensor = functions.get_4bit_type(quantization.value, device="cpu")
    order = torch.argsort(values)
    ascending = values[order]
    midpoints = (ascending[:-1] + ascending[1:]) / 2
    halves = torch.arange(-_NUM_HALVES // 2, _NUM_HALVES // 2, dtype=torch.int32) << 16
    ends = torch.stack([halves, halves | (_NUM_HALVES - 1)]).view(torch.float32)
    counts = torch.bucketize(ends, midpoints)
    below, most = counts.amin(dim=0), counts.amax(dim=0)
    are_numbers = ends.isfinite().all(dim=0)
    assert bool((most - below <= 1)[are_numbers].all())
    padded = torch.cat([midpoints, midpoints.new_full((1,), torch.inf)])
    is_split = (most > below) & are_numbers
    midpoint = torch.where(is_split, padded[below], torch.inf)
    # What isn't a number is beyond all midpoints.
    below = torch.where(are_numbers, below, len(midpoints))
    is_ascending = torch.equal(order, torch.arange(len(order)))
    byte = torch.arange(256)
    codes = (order[byte >> 4] << 4 | order[byte & 15]).to(torch.uint8)
    return below.to(torch.uint8), midpoint, None if is_ascending else codes
