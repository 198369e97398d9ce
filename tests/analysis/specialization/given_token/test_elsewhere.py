"""Use of experts by the same token ids in other domains: by loops, and of simulated routers."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import scipy.stats

from moetool.analysis.specialization.given_token.elsewhere import (
    SharedUse,
    find_familywise_p_values,
)
from moetool.analysis.specialization.given_token.vocabulary import SharedTokens
from tests.analysis.specialization.simulated import Router, Text, write_text

NUM_PERMUTATIONS = 99


def measure(text: Text, *, num_experts: int = 8, seed: int = 0) -> SharedUse:
    shared = SharedTokens(text.token_id, text.prompt, text.label, num_permutations=1, seed=seed)
    found = shared.compare(text.experts, num_experts=num_experts)
    assert found is not None
    return found.use


def find_p_values(*texts: Text) -> list[np.ndarray]:
    return find_familywise_p_values(
        [measure(text) for text in texts], num_permutations=NUM_PERMUTATIONS, seed=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_shares_and_scores_are_those_of_a_reading_token_by_token(seed: int) -> None:
    router = Router(num_experts=5, of_prompt=0.5, of_domain=0.5)
    text = write_text((4, 3, 5), router=router, seed=seed, num_tokens=30, num_ids=40)
    found = measure(text, num_experts=5)
    occurrences: dict[tuple[int, int], int] = defaultdict(int)
    chosen: dict[tuple[int, int, int], int] = defaultdict(int)
    for token, prompt, experts in zip(text.token_id, text.prompt, text.experts, strict=True):
        occurrences[token, prompt] += 1
        for expert in experts:
            chosen[token, prompt, expert] += 1
    domain_of = dict(enumerate(text.label.tolist()))
    ids = set(text.token_id.tolist())
    for domain in range(3):
        for expert in range(5):
            mine = elsewhere = total = 0.0
            terms: dict[int, float] = defaultdict(float)
            for token in ids:
                cells = [prompt for one, prompt in occurrences if one == token]
                inside = [prompt for prompt in cells if domain_of[prompt] == domain]
                outside = [prompt for prompt in cells if domain_of[prompt] != domain]
                number = sum(occurrences[token, prompt] for prompt in inside)
                others = sum(occurrences[token, prompt] for prompt in outside)
                uses = {prompt: chosen[token, prompt, expert] for prompt in cells}
                share = sum(uses.values()) / (number + others)
                if inside and outside:
                    total += number
                    mine += sum(uses[prompt] for prompt in inside)
                    elsewhere += number / others * sum(uses[prompt] for prompt in outside)
                    for prompt in cells:
                        size = occurrences[token, prompt]
                        weight = 1 if prompt in inside else -number / others
                        deviation = (uses[prompt] - size * share) / (1 - size / (number + others))
                        terms[prompt] += weight * deviation
            assert found.share[domain, expert] == pytest.approx(mine / total)
            assert found.share_elsewhere[domain, expert] == pytest.approx(elsewhere / total)
            error = np.sqrt(sum(term**2 for term in terms.values()))
            assert found.scores[domain, expert] == pytest.approx((mine - elsewhere) / error)


@pytest.mark.parametrize("of_prompt", [0.0, 1.0], ids=["token alone", "token and prompt"])
@pytest.mark.parametrize("sizes", [(10, 10, 10), (5, 20, 8)], ids=str)
def test_a_router_that_ignores_the_domain_has_no_difference(
    sizes: tuple[int, ...], of_prompt: float
) -> None:
    num_texts = 60
    differences, smallest = [], []
    for seed in range(num_texts):
        text = write_text(sizes, router=Router(of_prompt=of_prompt), seed=100 + seed)
        use = measure(text, seed=seed)
        differences.append(use.share[0] - use.share_elsewhere[0])
        (p_values,) = find_familywise_p_values([use], num_permutations=NUM_PERMUTATIONS, seed=seed)
        smallest.append(p_values.min())
    error = np.std(differences, axis=0, ddof=1) / np.sqrt(num_texts)
    assert (np.abs(np.mean(differences, axis=0)) < 4 * error).all()
    # The smallest of 24 cells is at most a tenth in about a tenth of the texts.
    few = sum(p_value <= 0.1 for p_value in smallest)
    assert scipy.stats.binomtest(few, num_texts, 0.1, alternative="greater").pvalue > 0.001


def test_a_router_that_looks_at_the_domain_has_other_shares_elsewhere() -> None:
    text = write_text((10, 10, 10), router=Router(of_domain=1.5), seed=0)
    use = measure(text)
    (p_values,) = find_p_values(text)
    assert p_values.min() == 1 / (1 + NUM_PERMUTATIONS)
    at_least = p_values <= 0.05
    assert (np.abs(use.share - use.share_elsewhere)[at_least] > 0.02).all()


def test_a_router_decided_by_the_token_has_the_same_shares_elsewhere() -> None:
    text = write_text((10, 10), router=Router(), seed=0)
    experts = np.stack([text.token_id % 8, (text.token_id + 3) % 8], axis=1)
    decided = Text(text.token_id, text.prompt, text.label, experts)
    use = measure(decided)
    assert use.share == pytest.approx(use.share_elsewhere)
    assert not use.scores.any()
    (p_values,) = find_p_values(decided)
    assert (p_values == 1).all()


def test_more_layers_make_each_p_value_larger() -> None:
    texts = [write_text((6, 6), router=Router(of_domain=0.3), seed=seed) for seed in range(4)]
    (alone,) = find_p_values(texts[0])
    first, *_ = find_p_values(*texts)
    assert (first >= alone).all()
    assert (first > alone).any()
