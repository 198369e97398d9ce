"""Repetition of experts from one token to the next (Mixtral, arXiv 2401.04088, table 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.decision_sizes import (
    SizeCounter,
    expect_any_common,
    expect_common,
)
from moetool.analysis.specialization.given_token.token_sample import LayerSample
from moetool.analysis.specialization.result import RepeatedShares, Repetition
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow

# Pairs of tokens that show how often a router without memory repeats itself: a standard error of
# at most half a point.
_RANDOM_PAIRS = 10_000
# Decisions of more experts are compared by sorting, in tables of at most as many cells.
_FEW_EXPERTS, _CELLS_AT_ONCE = 64, 2**24


@dataclass
class RepetitionCounter:
    """Compares the experts of consecutive tokens, window by window.

    Args:
        label: Domain of each of the reader's prompts. # (num_prompts,)
        num_domains: All of them.
        has_first: Whether the first expert of a decision is the router's first choice.

    Attributes:
        sizes: Decisions of each layer by domain and size.
    """

    label: NDArray[np.intp]
    num_domains: int
    has_first: bool
    sizes: dict[Place, SizeCounter] = field(default_factory=dict)
    # By domain: pairs, those with two first choices and with the same one, with a common expert, and
    # common experts.
    _sums: dict[Place, NDArray[np.int64]] = field(default_factory=dict)
    # First choices by domain and expert.
    _first: dict[Place, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, window: DecisionWindow, layers: Sequence[RoutedLayer]) -> None:
        """Count the decisions of a window."""
        for layer in layers:
            place = (layer.stack, layer.layer)
            choices = window.layers.get(place)
            if choices is None:
                continue
            prompt = window.prompt[choices.token]
            domain = self.label[prompt]
            experts = choices.experts.astype(np.int16)
            position = window.position[choices.token]
            follows = (prompt[1:] == prompt[:-1]) & (position[1:] == position[:-1] + 1)
            (before,) = np.nonzero(follows)
            common = count_common(experts[before], experts[before + 1])
            self.sizes.setdefault(place, SizeCounter()).add(choices, domain, before)
            has_two = (experts[before, 0] >= 0) & (experts[before + 1, 0] >= 0)
            is_same = has_two & (experts[before, 0] == experts[before + 1, 0])
            mine = np.stack(
                [
                    np.bincount(domain[before], weights=of_pairs, minlength=self.num_domains)
                    for of_pairs in (np.ones(len(before)), has_two, is_same, common > 0, common)
                ]
            ).astype(np.int64)
            self._sums[place] = self._sums.get(place, 0) + mine
            if self.has_first:
                number = layer.num_experts + layer.num_identity_experts
                ran = experts[:, 0] >= 0
                cell = domain[ran] * number + experts[ran, 0]
                first = np.bincount(cell, minlength=self.num_domains * number)
                first = first.reshape(self.num_domains, number)
                self._first[place] = self._first.get(place, 0) + first

    def measure(
        self,
        counts: ExpertCounts,
        samples: Mapping[Place, LayerSample],
        *,
        names: Sequence[str],
        domain_of_group: NDArray[np.intp],
        seed: int,
    ) -> tuple[Repetition, ...]:
        """Return the repetition of every layer, over all domains and for each.

        Args:
            counts: Counted by prompt.
            samples: Decisions of the sampled prompts.
            names: Of the domains.
            domain_of_group: Index of the domain of each group of the counts. # (num_groups,)
            seed: Random seed of the pairs behind `shuffled`.
        """
        found = []
        for layer in counts.layers:
            place = (layer.stack, layer.layer)
            if place not in self._sums:
                continue
            use = np.zeros((len(names), layer.num_experts))
            decisions = np.zeros(len(names))
            np.add.at(use, domain_of_group, layer.assignments)
            np.add.at(decisions, domain_of_group, layer.decisions)
            shuffled_any = self._draw_pairs(samples.get(place), decisions, seed=seed)
            for domain, name in ((None, None), *enumerate(names)):
                mine = slice(None) if domain is None else slice(domain, domain + 1)
                first = self._first.get(place)
                found.append(
                    _describe(
                        layer,
                        name,
                        sums=self._sums[place][:, mine].sum(axis=1),
                        sizes=self.sizes[place].count_pairs(domain),
                        num_decisions=int(decisions[mine].sum()),
                        first=None if first is None else first[mine].sum(axis=0),
                        use=use[mine].sum(axis=0),
                        shuffled_any=shuffled_any[-1 if domain is None else domain],
                    )
                )
        return tuple(found)

    def _draw_pairs(
        self, sample: LayerSample | None, decisions: NDArray[np.float64], *, seed: int
    ) -> list[float | None]:
        """Return how often random tokens of each domain, and of all, have an expert in common."""
        if sample is None:
            return [None] * (self.num_domains + 1)
        rng = np.random.default_rng([seed, 5])
        domain = self.label[sample.prompt]
        tokens = [np.flatnonzero(domain == one) for one in range(self.num_domains)]
        found: list[float | None] = []
        for mine in tokens:
            drawn = rng.choice(mine, size=(2, _RANDOM_PAIRS)) if len(mine) else None
            found.append(None if drawn is None else _share_any(sample.experts, drawn))
        # The sample may hold a domain in another proportion than the trace.
        sizes = np.array([len(mine) for mine in tokens], dtype=np.float64)
        weight = np.divide(decisions, sizes, out=np.zeros_like(sizes), where=sizes > 0)[domain]
        if not weight.sum():
            return [*found, None]
        drawn = rng.choice(len(domain), size=(2, _RANDOM_PAIRS), p=weight / weight.sum())
        return [*found, _share_any(sample.experts, drawn)]


def count_common(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return how many experts each two decisions have in common.

    Args:
        one: Distinct experts; negative where fewer ran. # (num_pairs, top_k)
        other: # The same
    """
    if one.shape[1] > _FEW_EXPERTS:
        return _count_repeated(one, other)
    common = np.zeros(len(one), dtype=np.int64)
    for column in range(one.shape[1]):
        mine = one[:, column]
        common += ((other == mine[:, None]) & (mine >= 0)[:, None]).sum(axis=1)
    return common


def _count_repeated(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the same by sorting both decisions together, some pairs at a time."""
    common = np.empty(len(one), dtype=np.int64)
    step = max(1, _CELLS_AT_ONCE // (2 * one.shape[1]))
    for start in range(0, len(one), step):
        part = slice(start, start + step)
        both = np.sort(np.concatenate([one[part], other[part]], axis=1), axis=1, kind="stable")
        common[part] = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    return common


def _share_any(experts: NDArray[np.int16], pairs: NDArray[np.intp]) -> float | None:
    """Return how often two tokens have an expert in common, leaving out a token and itself."""
    # Of few tokens, most pairs are drawn many times.
    distinct, number = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1, return_counts=True)
    if not len(number):
        return None
    is_any = count_common(experts[distinct[0]], experts[distinct[1]]) > 0
    return float(number[is_any].sum() / number.sum())


def _describe(
    layer: LayerCounts,
    domain: str | None,
    *,
    sums: NDArray[np.int64],
    sizes: Mapping[tuple[int, int], int],
    num_decisions: int,
    first: NDArray[np.int64] | None,
    use: NDArray[np.float64],
    shuffled_any: float | None,
) -> Repetition:
    """Return the repetition of one layer in one domain, or in all.

    Args:
        sums: Pairs, those with two first choices and with the same one, with a common expert, and
            common experts.
        sizes: Pairs by the sizes of both.
        num_decisions: All of them.
        first: First choices of each expert; None if they are unknown. # (num_experts,)
        use: Decisions that choose each expert. # (num_experts,)
        shuffled_any: As in the result.
    """
    pairs, has_two, same_first, shared, common = (int(each) for each in sums)
    knows_first = first is not None and bool(first.any())
    shuffled_first = None
    if first is not None and knows_first:
        shuffled_first = float(np.square(first / num_decisions).sum())
    common_by_chance = expect_common(layer.num_experts, sizes)
    return Repetition(
        stack=layer.stack,
        layer=layer.layer,
        domain=domain,
        num_pairs=pairs,
        first=same_first / pairs if pairs and first is not None else None,
        any=shared / pairs if pairs else None,
        overlap=common / pairs / layer.top_k if pairs else None,
        baseline=RepeatedShares(
            first=has_two / pairs / layer.num_experts if pairs and first is not None else None,
            any=expect_any_common(layer.num_experts, sizes),
            overlap=None if common_by_chance is None else common_by_chance / layer.top_k,
        ),
        shuffled=RepeatedShares(
            first=shuffled_first,
            any=shuffled_any,
            overlap=float(np.square(use / num_decisions).sum() / layer.top_k)
            if use.any()
            else None,
        ),
    )
