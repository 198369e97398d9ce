"""Attention with a backward pass, as one kernel of a GPU computes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

aten = torch.ops.aten


@contextmanager
def attention_as_on_gpu() -> Iterator[None]:
    """Run attention on the meta device by cuDNN's kernel, where torch would multiply matrices.

    On Hopper and later torch prefers that kernel (`check_prefer_cudnn_attention` in
    `sdp_utils.cpp`). It keeps its inputs, its output and a number for each row for the backward pass,
    while matrix products would keep all scores.
    """
    # Not a mode for functions: those are off while autograd runs a checkpointed layer once more.
    make_library: Any = torch.library.Library
    library = make_library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _attend, "AutogradMeta", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    # The kernel shares keys and values among heads.
    del enable_gqa
    has_backward = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value)
    )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_empty(attn_mask.shape)
    run: Any = aten._scaled_dot_product_cudnn_attention
    output: torch.Tensor = run(
        query, key, value, attn_mask, has_backward, dropout_p, is_causal, scale=scale
    )[0]
    return output
