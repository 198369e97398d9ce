"""Specialization given the token id: by loops, and of routers whose rule is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from math import log
from typing import TypeVar

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.specialization.given_token.vocabulary import (
    ConditionalSpecialization,
    SharedTokens,
)
from tests.analysis.specialization.simulated import Router, Text, write_text

# Repetitions of a control, with fixed seeds; a bound of four standard errors is left by chance once
# in 16,000 such draws.
NUM_REPEATS = 60
STANDARD_ERRORS = 4
NUM_PERMUTATIONS = 99

# What a decision is compared by.
Use = TypeVar("Use")


def compare(text: Text, *, seed: int = 0, num_experts: int = 8) -> ConditionalSpecialization:
    shared = SharedTokens(
        text.token_id, text.prompt, text.label, num_permutations=NUM_PERMUTATIONS, seed=seed
    )
    found = shared.compare(text.experts, num_experts=num_experts)
    assert found is not None
    return found


def repeat(sizes: tuple[int, ...], router: Router) -> list[ConditionalSpecialization]:
    return [
        compare(write_text(sizes, router=router, seed=seed), seed=seed)
        for seed in range(NUM_REPEATS)
    ]


def assert_mean_is_zero(values: list[float]) -> None:
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < STANDARD_ERRORS * error


@pytest.mark.parametrize("of_prompt", [0.0, 1.0], ids=["token alone", "token and prompt"])
@pytest.mark.parametrize("sizes", [(10, 10, 10), (5, 20, 8)], ids=str)
def test_a_router_that_ignores_the_domain_comes_out_at_zero(
    sizes: tuple[int, ...], of_prompt: float
) -> None:
    """Its domains differ in vocabulary, its prompts as a whole, and many token ids are rare."""
    found = repeat(sizes, Router(of_prompt=of_prompt))
    excess = [each.information_nats - each.null_nats for each in found]
    assert_mean_is_zero(excess)
    # As counted, without the null, the information is many times its bound here.
    assert min(each.information_nats for each in found) > 20 * abs(np.mean(excess))
    difference = []
    for each in found:
        assert each.same_domain_overlap is not None
        assert each.other_domain_overlap is not None
        difference.append(each.same_domain_overlap - each.other_domain_overlap)
    assert_mean_is_zero(difference)
    p_values = [each.p_value for each in found if each.p_value is not None]
    assert len(p_values) == NUM_REPEATS
    # A p-value is conservative at most: it is uniform, or larger.
    few = sum(p_value <= 0.1 for p_value in p_values)
    assert scipy.stats.binomtest(few, NUM_REPEATS, 0.1, alternative="greater").pvalue > 0.001


def test_a_router_that_looks_at_the_domain_is_found() -> None:
    for seed in range(5):
        found = compare(write_text((10, 10, 10), router=Router(of_domain=1.5), seed=seed))
        assert found.p_value == 1 / (1 + NUM_PERMUTATIONS)
        assert found.information_nats > 1.3 * found.null_nats
        assert found.same_domain_overlap is not None
        assert found.other_domain_overlap is not None
        assert found.same_domain_overlap > found.other_domain_overlap + 0.03


def test_a_router_decided_by_the_token_gives_exactly_nothing() -> None:
    text = write_text((10, 10), router=Router(), seed=0)
    experts = np.stack([text.token_id % 8, (text.token_id + 3) % 8], axis=1)
    found = compare(Text(text.token_id, text.prompt, text.label, experts))
    assert found.information_nats == pytest.approx(0, abs=1e-12)
    assert found.null_nats == pytest.approx(0, abs=1e-12)
    assert (found.same_domain_overlap, found.other_domain_overlap) == pytest.approx((1, 1))
    assert found.p_value == 1


def test_a_router_decided_by_the_domain_explains_all() -> None:
    text = write_text((10, 10), router=Router(), seed=0)
    domain = text.label[text.prompt]
    found = compare(Text(text.token_id, text.prompt, text.label, domain[:, None]))
    assert found.information_nats == pytest.approx(found.domain_entropy_nats)
    assert (found.same_domain_overlap, found.other_domain_overlap) == pytest.approx((1, 0))


def test_every_expert_for_every_token_tells_nothing() -> None:
    text = write_text((6, 6), router=Router(num_experts=4, top_k=4), seed=0)
    found = compare(text, num_experts=4)
    assert found.information_nats == pytest.approx(0, abs=1e-12)
    assert found.p_value == 1


def by_loops(text: Text) -> tuple[float, float, float, float]:
    """Return the information, the entropy of domains, and both overlaps, one token at a time."""
    joint: dict[tuple[int, int, int], int] = defaultdict(int)
    uses: dict[tuple[int, int], list[set[int]]] = defaultdict(list)
    for token, prompt, experts in zip(text.token_id, text.prompt, text.experts, strict=True):
        uses[token, prompt].append({int(one) for one in experts if one >= 0})
    domains = {token: set() for token, _ in uses}  # type: dict[int, set[int]]
    for token, prompt in uses:
        domains[token].add(text.label[prompt])
    sizes: dict[tuple[int, int], int] = defaultdict(int)
    for (token, prompt), decisions in uses.items():
        if len(domains[token]) > 1:
            sizes[token, text.label[prompt]] += len(decisions)
            for decision in decisions:
                for expert in decision:
                    joint[token, text.label[prompt], expert] += 1
    total = sum(joint.values())
    of_token: dict[int, int] = defaultdict(int)
    of_domain: dict[tuple[int, int], int] = defaultdict(int)
    of_expert: dict[tuple[int, int], int] = defaultdict(int)
    for (token, domain, expert), number in joint.items():
        of_token[token] += number
        of_domain[token, domain] += number
        of_expert[token, expert] += number
    information = sum(
        number
        / total
        * log(number * of_token[token] / of_domain[token, domain] / of_expert[token, expert])
        for (token, domain, expert), number in joint.items()
    )
    tokens: dict[int, int] = defaultdict(int)
    for (token, _), number in sizes.items():
        tokens[token] += number
    entropy = -sum(
        number / sum(tokens.values()) * log(number / tokens[token])
        for (token, _), number in sizes.items()
    )
    top_k = text.experts.shape[1]
    return (
        information,
        entropy,
        *overlaps_by_loops(text, uses, lambda mine, theirs: len(mine & theirs) / top_k),
    )


def overlaps_by_loops(
    text: Text, uses: dict[tuple[int, int], list[Use]], share: Callable[[Use, Use], float]
) -> tuple[float, float]:
    def overlap(token: int, one: int, other: int) -> float:
        pairs = [share(mine, theirs) for mine in uses[token, one] for theirs in uses[token, other]]
        return float(sum(pairs) / len(pairs))

    same = other = weights = 0.0
    for token in {token for token, _ in uses}:
        prompts: dict[int, list[int]] = defaultdict(list)
        for each, prompt in uses:
            if each == token:
                prompts[text.label[prompt]].append(prompt)
        several = {domain: mine for domain, mine in prompts.items() if len(mine) > 1}
        if len(several) < 2:
            continue
        within = {
            domain: np.mean([overlap(token, *pair) for pair in combinations(mine, 2)])
            for domain, mine in several.items()
        }
        num_pairs = sum(len(a) * len(b) for a, b in combinations(several.values(), 2))
        occurrences = sum(len(uses[token, one]) for mine in several.values() for one in mine)
        for one, another in combinations(several, 2):
            weight = occurrences * len(several[one]) * len(several[another]) / num_pairs
            across = [overlap(token, a, b) for a in several[one] for b in several[another]]
            same += weight * float(within[one] + within[another]) / 2
            other += weight * float(np.mean(across))
        weights += occurrences
    return same / weights, other / weights


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_a_reading_token_by_token(seed: int) -> None:
    router = Router(num_experts=5, top_k=2, of_prompt=0.5, of_domain=0.5)
    text = write_text((4, 3, 5), router=router, seed=seed, num_tokens=30, num_ids=40)
    # Some decisions ran fewer experts.
    text.experts[::7, 1] = -1
    information, entropy, same, other = by_loops(text)
    found = compare(text, num_experts=5)
    assert found.information_nats == pytest.approx(information)
    assert found.domain_entropy_nats == pytest.approx(entropy)
    assert found.same_domain_overlap == pytest.approx(same)
    assert found.other_domain_overlap == pytest.approx(other)
    # An even share of each expert, in place of each decision's experts.
    sizes = (text.experts >= 0).sum(axis=1)
    uses: dict[tuple[int, int], list[float]] = defaultdict(list)
    for token, prompt, size in zip(text.token_id, text.prompt, sizes, strict=True):
        uses[token, prompt].append(int(size))
    assert (found.same_by_chance, found.other_by_chance) == pytest.approx(
        overlaps_by_loops(text, uses, lambda one, another: one * another / 5 / 2)
    )


@settings(max_examples=15)
@given(st.permutations(range(8)), st.integers(0, 1000))
def test_the_numbering_of_experts_and_ids_changes_nothing(order: list[int], seed: int) -> None:
    text = write_text((4, 4), router=Router(of_domain=0.5), seed=seed, num_ids=50)
    renamed = Text(
        text.token_id + 7, text.prompt, text.label, np.array(order, dtype=np.int64)[text.experts]
    )
    one, other = compare(text), compare(renamed)
    for name in ("information_nats", "null_nats", "same_domain_overlap", "other_domain_overlap"):
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name
    assert one.p_value == other.p_value


def test_domains_without_a_common_token_are_not_compared() -> None:
    text = write_text((4, 4), router=Router(), seed=0)
    apart = text.token_id + 1000 * text.label[text.prompt]
    shared = SharedTokens(apart, text.prompt, text.label, num_permutations=9, seed=0)
    assert shared.compare(text.experts, num_experts=8) is None


def test_a_token_in_one_prompt_of_a_domain_shows_no_overlap_within_it() -> None:
    found = compare(
        Text(
            token_id=np.array([3, 3, 3]),
            prompt=np.array([0, 1, 2]),
            label=np.array([0, 1, 1]),
            experts=np.array([[0], [1], [1]]),
        )
    )
    assert found.information_nats == pytest.approx(log(3) - 2 / 3 * log(2))
    assert (found.same_domain_overlap, found.p_value) == (None, None)
