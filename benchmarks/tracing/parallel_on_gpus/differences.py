"""Decisions that differ between two records of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.tracing.recording.calls import RecordedCall


def count_differences(
    one: Sequence[RecordedCall], other: Sequence[RecordedCall], dtype: torch.dtype
) -> tuple[int, int, float, int]:
    """Return how many decisions differ, how many of these are ties, the largest distance, and all."""
    num = num_ties = total = 0
    largest = 0.0
    for first, second in zip(gather(one), gather(other), strict=True):
        ids, scores = first
        num_experts = scores.shape[1]
        chosen, also = mask(ids, num_experts), mask(second[0], num_experts)
        differ = (chosen != also).any(axis=1)
        total += len(ids)
        num += int(differ.sum())
        if not differ.any():
            continue
        scores, left, came = scores[differ], (chosen & ~also)[differ], (also & ~chosen)[differ]
        most = np.where(left, scores, -np.inf).max(axis=1)
        least = np.where(came, scores, np.inf).min(axis=1)
        unit = torch.finfo(dtype).eps * np.abs(scores).max(axis=1)
        distance = (most - least) / unit
        num_ties += int((distance <= 1).sum())
        largest = max(largest, float(distance.max()))
    return num, num_ties, largest, total


def gather(recorded: Sequence[RecordedCall]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the ids and scores of all tokens, by layer."""
    layers = zip(*(call.layers for call in recorded), strict=True)
    return [
        (
            np.concatenate([layer.experts for layer in calls]),
            np.concatenate([layer.scores for layer in calls]),
        )
        for calls in layers
    ]


def mask(ids: NDArray[Any], num_experts: int) -> NDArray[np.bool_]:
    """Return which experts were chosen, one row for each token."""
    chosen = np.zeros((len(ids), num_experts), dtype=bool)
    np.put_along_axis(chosen, ids.astype(np.int64), True, axis=1)
    return chosen
