"""Stand-ins for torch's compiled flex attention, which take the memory that its generated code takes.

transformers compiles `create_block_mask` and `flex_attention`. The sources are inductor's lowerings
(torch/_inductor/kernel/flex/flex_attention.py and flex_decoding.py), and the code that inductor
generates for a mask. transformers' own code runs around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxOutput, BlockMask
from transformers import masking_utils
from transformers.integrations import flex_attention as integration

from moetool.simulation.meta.replaced import replaced

FLEX_ATTENTION = "flex_attention"
# Of an H100 and an H200.
_NUM_PROCESSORS = 132
_BLOCK_SIZE = 128
# Below, keys are divided among processors, and their results are combined.
_LEAST_QUERIES = 128


@contextmanager
def standing_in_for_flex(implementation: str) -> Iterator[None]:
    """Let transformers use stand-ins for compiled functions; does nothing for other attention.

    Args:
        implementation: transformers' name of the attention.
    """
    if implementation != FLEX_ATTENTION:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(replaced(masking_utils, {"create_block_mask": make_block_mask}))
        stack.enter_context(replaced(integration, {"compile_friendly_flex_attention": _attend}))
        yield


def make_block_mask(
    mask_mod: Callable[..., torch.Tensor],
    B: int | None,  # noqa: N803  (torch's names)
    H: int | None,  # noqa: N803
    Q_LEN: int,  # noqa: N803
    KV_LEN: int,  # noqa: N803
    device: torch.device | str | None = None,
    **_: Any,
) -> BlockMask:
    """Return a mask without values, as the compiled `create_block_mask` makes it.

    All pairs of positions are seen in one kernel, which counts those of each block of 128 by 128.
    """
    rows, columns = -(-Q_LEN // _BLOCK_SIZE), -(-KV_LEN // _BLOCK_SIZE)
    make: Callable[..., torch.Tensor] = partial(torch.empty, dtype=torch.int32, device=device)
    shape = (B or 1, H or 1, rows, columns)
    # By kind: blocks of which some positions are seen, and blocks seen as a whole.
    wide = [make((*shape[:3], columns + 1)) for _ in range(2)]
    counts = make(shape, dtype=torch.long)
    chosen = [make(shape) for _ in range(2)]
    totals = [make(shape[:3], dtype=torch.long) for _ in range(2)]
    numbers = [make(shape[:3]) for _ in range(2)]
    del counts, totals
    by_key: list[torch.Tensor] = []
    numbers_by_key: list[torch.Tensor] = []
    for each in chosen:
        order = _sort(each)
        by_key.append(make((*shape[:2], columns, rows)))
        totals_by_key = make((*shape[:2], columns), dtype=torch.long)
        numbers_by_key.append(make((*shape[:2], columns)))
        del wide[0], order, totals_by_key
    for each in by_key:
        _sort(each)
    # What was sorted holds the sorted blocks now.
    return BlockMask(
        (Q_LEN, KV_LEN),
        kv_num_blocks=numbers[0],
        kv_indices=chosen[0],
        full_kv_num_blocks=numbers[1],
        full_kv_indices=chosen[1],
        q_num_blocks=numbers_by_key[0],
        q_indices=by_key[0],
        full_q_num_blocks=numbers_by_key[1],
        full_q_indices=by_key[1],
        mask_mod=mask_mod,
    )


def count_parts(*, batch_size: int, num_key_heads: int) -> int:
    """Return the parts into which keys are divided for a few queries (`get_split_k`)."""
    return max(_NUM_PROCESSORS // max(batch_size * num_key_heads, 1) * 2, 1)


def _sort(chosen: torch.Tensor) -> torch.Tensor:
    """Return the order in which the chosen blocks of each row come first."""
    return torch.sort(chosen, dim=-1, descending=True, stable=True)[1]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    training: bool = False,
    *,
    enable_gqa: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, AuxOutput]:
    """Return tensors of the shapes of attention's output and of its logarithms of sums.

    (batch, num_heads, num_queries, width) -> the same, with the width of values

    Raises:
        NotImplementedError: Heads are narrower than the kernel takes.
    """
    del training, enable_gqa
    width = value.shape[-1]
    if min(query.shape[-1], width) < 16:
        raise NotImplementedError("flex attention takes heads of 16 numbers or more")
    num_heads, num_key_heads = query.shape[1], key.shape[1]
    num_groups = num_heads // num_key_heads
    if query.shape[2] < _LEAST_QUERIES and num_groups & (num_groups - 1) == 0:
        return _attend_in_parts(query, num_key_heads, width)
    rows = query.shape[:-1]
    sums = query.new_empty(rows, dtype=torch.float32)
    largest = query.new_empty(rows, dtype=torch.float32)
    out = _make_output(query, width)
    del largest
    return out, AuxOutput(lse=sums)


def _attend_in_parts(
    query: torch.Tensor, num_key_heads: int, width: int
) -> tuple[torch.Tensor, AuxOutput]:
    """Return the same for a few queries: each part of the keys has its own results at first."""
    batch_size, num_heads, num_queries, _ = query.shape
    num_parts = count_parts(batch_size=batch_size, num_key_heads=num_key_heads)
    rows = (batch_size, num_parts, num_heads, num_queries)
    kept = [query.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    kept.append(query.new_empty((*rows, width), dtype=torch.float32))
    whole = (batch_size, num_heads, num_queries)
    # The largest score, the sum, and its logarithm.
    kept += [query.new_empty(whole, dtype=torch.float32) for _ in range(2)]
    sums = query.new_empty(whole, dtype=torch.float32)
    out = query.new_empty((*whole, width))
    del kept
    return out, AuxOutput(lse=sums)


def _make_output(query: torch.Tensor, width: int) -> torch.Tensor:
    """Return a tensor without gaps, whose dimensions lie in memory in the order of the queries'."""
    order = sorted(range(query.dim()), key=query.stride, reverse=True)
    sizes = (*query.shape[:-1], width)
    return torch.empty_permuted(sizes, order, dtype=query.dtype, device=query.device)
