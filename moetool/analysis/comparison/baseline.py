"""Agreement of two routers that choose independently of each other."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Baseline:
    """The expected agreement of two independent routers.

    Attributes:
        overlap: Experts chosen by both, as a share of the larger of the two sets.
        jaccard: Experts chosen by both, as a share of those chosen by either; None where it does
            not follow from what is known.
        saturation: Experts chosen by both, as a share of the second router's.
        changed_decisions: Share of decisions whose sets differ; None where it does not follow.
        first_choice_flips: Share of decisions whose first choices differ; None without ranks.
    """

    overlap: float
    jaccard: float | None
    saturation: float
    changed_decisions: float | None
    first_choice_flips: float | None


def expect_uniform(num_experts: int, top_k: int, other_top_k: int) -> Baseline:
    """Return the agreement of two routers that draw any set of experts equally often.

    The number of common experts is hypergeometric with mean `k k' / E`, so that the overlap is
    `k / E` for equal k, and the first choices differ with probability `1 - 1 / E`.

    Args:
        num_experts: E, of both.
        top_k: k of the first.
        other_top_k: k' of the second.
    """
    all_sets = comb(num_experts, other_top_k)
    jaccard = 0.0
    for shared in range(min(top_k, other_top_k) + 1):
        ways = comb(top_k, shared) * comb(num_experts - top_k, other_top_k - shared)
        jaccard += ways / all_sets * shared / (top_k + other_top_k - shared)
    mean = top_k * other_top_k / num_experts
    return Baseline(
        overlap=mean / max(top_k, other_top_k),
        jaccard=jaccard,
        saturation=mean / other_top_k,
        changed_decisions=1 - 1 / all_sets if top_k == other_top_k else 1.0,
        first_choice_flips=1 - 1 / num_experts,
    )


def expect_popular(
    load: NDArray[np.int64],
    other_load: NDArray[np.int64],
    num_decisions: int,
    *,
    top_k: int,
    other_top_k: int,
    first_choices: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
) -> Baseline | None:
    """Return the agreement of two routers that choose each expert as often as the traces do.

    Two independent routers have `sum_e p_e p'_e` experts in common, if they choose expert e for
    shares p_e and p'_e of tokens. None without decisions.

    Args:
        load: Decisions that include each expert. # (num_experts,)
        other_load: In the second trace. # (num_experts,)
        num_decisions: Of each trace.
        top_k: Of the first.
        other_top_k: Of the second.
        first_choices: Decisions with each expert as the first choice, of both traces; None without
            ranks. # (num_experts,) each
    """
    if not num_decisions:
        return None
    mean = float((load / num_decisions) @ (other_load / num_decisions))
    flips = None
    if first_choices is not None:
        shares = [number / num_decisions for number in first_choices]
        flips = float(1 - shares[0] @ shares[1])
    return Baseline(
        overlap=mean / max(top_k, other_top_k),
        jaccard=None,
        saturation=mean / other_top_k,
        changed_decisions=None,
        first_choice_flips=flips,
    )
