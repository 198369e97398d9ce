"""Limits on the number of prompts that are traced."""

from __future__ import annotations

from collections import Counter


class PromptLimits:
    """Decides of each prompt, in the order of the source, whether it is kept.

    Args:
        total: Keep only this many prompts.
        per_domain: Keep only this many prompts of each domain, before `total` applies.
    """

    def __init__(self, total: int | None = None, per_domain: int | None = None) -> None:
        self._total = total
        self._per_domain = per_domain
        self._num_kept = 0
        self._kept_of_domain: Counter[str] = Counter()

    def take(self, domain: str) -> bool:
        """Return whether to keep the next prompt, which is of this domain."""
        if self._total is not None and self._num_kept >= self._total:
            return False
        if self._per_domain is not None and self._kept_of_domain[domain] >= self._per_domain:
            return False
        self._num_kept += 1
        self._kept_of_domain[domain] += 1
        return True
