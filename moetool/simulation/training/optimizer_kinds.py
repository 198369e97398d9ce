"""The optimizers that steps of training can be simulated with."""

from __future__ import annotations

from enum import StrEnum


class Optimizer(StrEnum):
    """Optimizers, with their defaults.

    Attributes:
        ADAMW: torch's AdamW. On a GPU it runs through all parameters at once (`foreach`).
        ADAMW_8BIT: bitsandbytes' AdamW8bit, which runs one parameter after another.
        SGD: torch's SGD without momentum, which keeps no states.
    """

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    SGD = "sgd"
