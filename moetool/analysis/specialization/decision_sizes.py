"""Sizes of decisions by domain, and what a uniform random router that runs as few experts gives.

Such a router chooses, for a decision of size s, each of E experts with the chance `s / E`, whose
variance is `s (E - s) / E²`. With `U_d` the sum of `s (E - s)` over the decisions of domain d,
`A_d` that of s, and U and A over all domains, to first order

    mutual information:  sum over d of ((1 - A_d / A)² U_d + (A_d / A)² (U - U_d)) / (2 A A_d)
    divergence of two:   (U_a / A_a² + U_b / A_b²) / 8

which are `(E - k) (domains - 1) / (2 A)` and `(E - k) (1 / A_a + 1 / A_b) / 8` if all decisions choose
k experts. Two decisions of sizes a and b have `a b / E` experts in common on average, and none with
the chance `C(E - a, b) / C(E, b)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes
from moetool.trace.reading.counts import LayerCounts
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import LayerChoices


@dataclass
class SizeCounter:
    """Counts decisions by domain and size, and pairs of consecutive ones.

    Attributes:
        decisions: By domain, then by size.
        pairs: By domain, then by the sizes of both.
    """

    decisions: Counter[tuple[int, int]] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def add(
        self, choices: LayerChoices, domain: NDArray[np.intp], before: NDArray[np.intp]
    ) -> None:
        """Count decisions.

        Args:
            choices: The decisions.
            domain: Of each decision. # (num_decisions,)
            before: Index of the first of each two consecutive decisions. # (num_pairs,)
        """
        experts = choices.experts
        width = experts.shape[1]
        if (experts >= 0).all():
            self.decisions.update({(one, width): n for one, n in _count(domain)})
            self.pairs.update({(one, width, width): n for one, n in _count(domain[before])})
            return
        size = (experts >= 0).sum(axis=1)
        side = width + 1
        for code, number in _count(domain * side + size):
            self.decisions[code // side, code % side] += number
        codes = (domain[before] * side + size[before]) * side + size[before + 1]
        for code, number in _count(codes):
            self.pairs[code // side**2, code // side % side, code % side] += number

    def list_sizes(self, num_domains: int) -> tuple[Sizes, ...]:
        """Return the sizes of each domain's decisions."""
        found: list[dict[int, int]] = [{} for _ in range(num_domains)]
        for (domain, size), number in sorted(self.decisions.items()):
            found[domain][size] = number
        return tuple(map(make_sizes, found))

    def count_pairs(self, domain: int | None) -> Mapping[tuple[int, int], int]:
        """Return the pairs of one domain, or of all, by the sizes of both."""
        found = Counter[tuple[int, int]]()
        for (one, first, second), number in self.pairs.items():
            if domain in (None, one):
                found[first, second] += number
        return found


def choose_sizes(
    layer: LayerCounts,
    label: NDArray[np.intp],
    counted: Mapping[Place, Sequence[Sizes]],
    num_domains: int,
) -> Sequence[Sizes] | None:
    """Return the sizes of each domain's decisions: as counted, or as they follow from the counts.

    None if decisions were not looked at and some have fewer experts than top-k.

    Args:
        layer: Counted by prompt.
        label: Index of each prompt's domain. # (num_prompts,)
        counted: By layer.
        num_domains: All of them.
    """
    known = counted.get((layer.stack, layer.layer))
    if known is not None:
        return known
    if (layer.assignments.sum(axis=1) != layer.top_k * layer.decisions).any():
        return None
    decisions = np.zeros(num_domains, dtype=np.int64)
    np.add.at(decisions, label, layer.decisions)
    return [make_sizes({layer.top_k: number}) for number in decisions.tolist()]


def expect_information(num_experts: int, sizes: Sequence[Sizes]) -> float | None:
    """Return the mutual information of expert and domain under a uniform random router, in nats.

    Args:
        num_experts: Experts of the layer.
        sizes: Of each domain's decisions.
    """
    sums = [_sum_sizes(num_experts, of_domain) for of_domain in sizes]
    all_u, all_a = (sum(each[index] for each in sums) for index in (0, 1))
    if not all_a:
        return None
    return sum(
        ((1 - a / all_a) ** 2 * u + (a / all_a) ** 2 * (all_u - u)) / (2 * all_a * a)
        for u, a in sums
        if a
    )


def expect_divergence(num_experts: int, one: Sizes, other: Sizes) -> float | None:
    """Return the Jensen-Shannon divergence of two domains under a uniform random router, in nats."""
    sums = [_sum_sizes(num_experts, sizes) for sizes in (one, other)]
    return sum(u / a**2 for u, a in sums) / 8 if all(a for _, a in sums) else None


def expect_any_common(num_experts: int, pairs: Mapping[tuple[int, int], int]) -> float | None:
    """Return the share of pairs of decisions with an expert in common under such a router.

    Args:
        num_experts: Experts of the layer.
        pairs: By the sizes of both.
    """
    total = sum(pairs.values())
    shared = sum(
        number * find_any_chance(num_experts, *sorted(sizes)) for sizes, number in pairs.items()
    )
    return shared / total if total else None


def expect_common(num_experts: int, pairs: Mapping[tuple[int, int], int]) -> float | None:
    """Return the mean number of experts that pairs have in common under such a router."""
    total = sum(pairs.values())
    common = sum(first * second * number for (first, second), number in pairs.items())
    return common / num_experts / total if total else None


@cache
def find_any_chance(num_experts: int, first: int, second: int) -> float:
    """Return how often random choices of two sizes have an expert in common."""
    if first + second > num_experts:
        return 1.0
    return 1 - comb(num_experts - first, second) / comb(num_experts, second)


def _sum_sizes(num_experts: int, sizes: Sizes) -> tuple[int, int]:
    """Return the sums of `s (E - s)` and of s."""
    return (
        sum(size * (num_experts - size) * number for size, number in sizes),
        sum(size * number for size, number in sizes),
    )


def _count(codes: NDArray[np.intp]) -> Iterable[tuple[int, int]]:
    """Return each code that occurs with its number."""
    numbers = np.bincount(codes)
    found = numbers.nonzero()[0]
    return zip(found.tolist(), numbers[found].tolist(), strict=True)
