"""Name the policies that decide which experts stay on the GPU."""

from __future__ import annotations

from enum import StrEnum


class Policy(StrEnum):
    """Rules for the experts that stay on the GPU.

    Attributes:
        STATIC: Those that the other half of the prompts used most; they never change.
        LRU: Those that were used last.
        LFU: Those that were used by most tokens since the beginning.
        BELADY: Those that are needed soonest: the optimum, which knows the future.
    """

    STATIC = "static"
    LRU = "lru"
    LFU = "lfu"
    BELADY = "belady"


POLICIES = tuple(Policy)
