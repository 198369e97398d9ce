"""The memory of an assistant, which drafts tokens for another model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AssistantMemory:
    """An assistant's part of a run's memory. The run's own figures include it.

    Attributes:
        model: The assistant, as it was named.
        weights_bytes: Its parameters and buffers, as the allocator holds them.
        cache_bytes: Its cache after the last token that is run.
        num_candidates: The most tokens that it drafts in a round.
        num_rounds: Rounds of drafting and checking, if every candidate is accepted.
    """

    model: str
    weights_bytes: int
    cache_bytes: int
    num_candidates: int
    num_rounds: int
