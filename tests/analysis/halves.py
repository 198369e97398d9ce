"""The half of a trace's prompts that predictions are fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def choose_fitted(prompt_ids: Iterable[str]) -> set[str]:
    """Return the half of the prompts with the smallest hashes under the seed 0."""
    ordered = sorted(
        set(prompt_ids),
        key=lambda name: blake2b(name.encode(), digest_size=8, key=bytes(8)).digest(),
    )
    return {*ordered[: len(ordered) // 2]}
