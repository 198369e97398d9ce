"""Agreement of two routers that choose independently of each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import comb


@dataclass(frozen=True)
class Baseline:
    """The expected agreement of two independent routers, which run as many experts as the traces.

    Each decision of a router has the number of experts that the trace has there, so that choices
    that ran no expert count as they do in the trace.

    Attributes:
        overlap: Experts chosen by both, as a share of the larger of the two sets.
        jaccard: Experts chosen by both, as a share of those chosen by either.
        saturation: Experts chosen by both, as a share of the second router's.
        changed_decisions: Share of decisions whose sets differ.
        first_choice_flips: Share of decisions whose first choices differ; None without ranks.
        weight_change: Share of weight that moved, for equal sets whose weights are those of other
            tokens of the traces in random order; None without weights.
    """

    overlap: float | None
    jaccard: float | None
    saturation: float | None
    changed_decisions: float | None
    first_choice_flips: float | None
    weight_change: float | None


@cache
def expect_uniform(num_experts: int, num_first: int, num_second: int) -> Baseline:
    """Return the expected agreement of two sets of experts, if any are chosen equally often.

    The number of common experts is hypergeometric with mean `a b / E` for sets of a and b, so that
    the overlap is `k / E` for two of k, and the first choices differ with probability `1 - 1 / E`.

    Args:
        num_experts: E, of both.
        num_first: Experts of the first set, a.
        num_second: Experts of the second, b; at least one of the sets has one.

    Returns:
        The measures; saturation is None if the second set is empty, first choices if either is.
    """
    all_sets = comb(num_experts, num_second)
    jaccard = 0.0
    for shared in range(min(num_first, num_second) + 1):
        ways = comb(num_first, shared) * comb(num_experts - num_first, num_second - shared)
        jaccard += ways / all_sets * shared / (num_first + num_second - shared)
    mean = num_first * num_second / num_experts
    return Baseline(
        overlap=mean / max(num_first, num_second),
        jaccard=jaccard,
        saturation=mean / num_second if num_second else None,
        changed_decisions=1 - 1 / all_sets if num_first == num_second else 1.0,
        first_choice_flips=1 - 1 / num_experts if num_first and num_second else None,
        weight_change=None,
    )
