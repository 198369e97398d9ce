"""Limits on the number of prompts that are traced."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptLimits:
    """Limits on the prompts that are kept, from the first.

    Attributes:
        total: Limit on all prompts.
        per_domain: Limit on the prompts of each domain; `total` counts those that it leaves.
    """

    total: int | None = None
    per_domain: int | None = None


class PromptChoice:
    """Decides of each prompt, in the order of the source, whether it is kept."""

    def __init__(self, limits: PromptLimits) -> None:
        self._limits = limits
        self._num_kept = 0
        self._kept_of_domain: Counter[str] = Counter()

    def take(self, domain: str) -> bool:
        """Return whether to keep the next prompt, which is of this domain."""
        total, per_domain = self._limits.total, self._limits.per_domain
        if total is not None and self._num_kept >= total:
            return False
        if per_domain is not None and self._kept_of_domain[domain] >= per_domain:
            return False
        self._num_kept += 1
        self._kept_of_domain[domain] += 1
        return True
