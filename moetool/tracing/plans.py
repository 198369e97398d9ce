"""The plans by which processes share one model."""

from __future__ import annotations

from enum import StrEnum


class ParallelPlan(StrEnum):
    """Ways in which processes share one model, by transformers' own plans.

    Attributes:
        TENSOR: Each process holds a part of every matrix.
        EXPERT: Each process holds some of the experts, and a part of every other matrix.
    """

    TENSOR = "tensor"
    EXPERT = "expert"
