"""Errors in a decision, as weights by token and expert and the rows that experts received."""

from __future__ import annotations

import torch
from torch import Tensor


def off_by_one_per_cent(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights * 1.01, rows


def with_experts_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.roll(1, dims=1), rows.roll(1, dims=1)


def with_tokens_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.roll(1, dims=0), rows.roll(1, dims=0)


def with_rows_exchanged(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights, rows.masked_fill(weights != 0, 0)


def without_a_token(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return weights.index_fill(0, torch.tensor([3]), 0), rows
