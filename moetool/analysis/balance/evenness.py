"""Evenness: figures of how equally the experts of a layer share their assignments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of an expert's load over the mean load, over the experts of a layer.
PERCENTILES = (0, 5, 25, 50, 75, 90, 95, 100)


@dataclass(frozen=True)
class Evenness:
    """Figures of one load; all but `num_dead` are None where no expert ran.

    Those of a random router are all None where top-k is unknown.

    Let `c` be the assignments of each of `E` experts, `N` their sum and `p = c / N`.

    Attributes:
        entropy: `-sum(p ln p) / ln E`: 1 when even. A single expert is even by definition.
        cv: Standard deviation of `c` over its mean (Shazeer et al. 2017, arXiv 1701.06538).
        gini: Gini coefficient of `c`: 0 when even.
        max_violation: The largest `c` over the mean, minus 1 (arXiv 2408.15664).
        jain: Jain's index `N**2 / (E sum(c**2))`, which is `1 / (1 + cv**2)`.
        num_dead: Experts that were never chosen; their expected number for a random router.
        percentiles: Of `c` over its mean, interpolated between experts: `p0` to `p100`.
    """

    entropy: float | None
    cv: float | None
    gini: float | None
    max_violation: float | None
    jain: float | None
    num_dead: float | None
    percentiles: Mapping[str, float] | None

    @property
    def max_over_mean(self) -> float | None:
        """The largest `c` over the mean."""
        return find_over_mean(self.max_violation)


def find_over_mean(violation: float | None) -> float | None:
    """Return a load over the mean load from how far it exceeds that; None for None."""
    return None if violation is None else 1 + violation


def measure_evenness(load: NDArray[np.int64]) -> Evenness:
    """Return the evenness of the assignments of each expert: (num_experts,)."""
    num_experts = len(load)
    num_dead = int((load == 0).sum())
    total = int(load.sum())
    if not total:
        return Evenness(None, None, None, None, None, num_dead, None)
    over_mean = np.sort(load) * (num_experts / total)
    share = load[load > 0] / total
    rank = np.arange(1, num_experts + 1)
    squared_cv = float(np.mean((over_mean - 1) ** 2))
    return Evenness(
        entropy=float(-(share * np.log(share)).sum() / np.log(num_experts))
        if num_experts > 1
        else 1.0,
        cv=squared_cv**0.5,
        gini=float(((2 * rank - num_experts - 1) * over_mean).sum() / num_experts**2),
        max_violation=float(over_mean[-1] - 1),
        jain=1 / (1 + squared_cv),
        num_dead=num_dead,
        percentiles=find_percentiles(over_mean),
    )


def find_percentiles(ascending: NDArray[np.floating]) -> dict[str, float]:
    """Return the percentiles of numbers in ascending order, interpolated linearly."""
    place = np.array(PERCENTILES) / 100 * (len(ascending) - 1)
    values = np.interp(place, np.arange(len(ascending)), ascending)
    return {f"p{percent}": float(one) for percent, one in zip(PERCENTILES, values, strict=True)}
