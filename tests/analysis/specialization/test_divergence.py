"""Divergence between domains: by hand, by loops, and of samples of one distribution."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import scipy.spatial.distance

from moetool.analysis.specialization.divergence import MOST_DOMAINS, find_divergence
from moetool.analysis.specialization.measure import measure_specialization
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from tests.report.examples import make_counts


def test_the_divergence_is_the_squared_distance_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 50, size=(2, 20, 6)).astype(float)
    expected = [
        scipy.spatial.distance.jensenshannon(a, b) ** 2 for a, b in zip(one, other, strict=True)
    ]
    assert find_divergence(one, other) == pytest.approx(expected)


def test_no_common_expert_gives_ln_2_and_equal_use_nothing() -> None:
    one = np.array([[3.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    other = np.array([[0.0, 9.0], [6.0, 2.0], [1.0, 2.0]])
    assert find_divergence(one, other)[:2] == pytest.approx([log(2), 0])
    assert np.isnan(find_divergence(one, other)[2])


def test_every_pair_of_every_layer_is_compared_and_agrees_with_its_counts() -> None:
    counts = make_counts(["code", "prose", "verse"], prompts_per_domain=5)
    result = measure_specialization(counts, num_permutations=19)
    pairs = [("code", "prose"), ("code", "verse"), ("prose", "verse")]
    assert [(each.layer, (each.domain, each.other)) for each in result.divergences] == [
        (layer, pair) for layer in (0, 1) for pair in pairs
    ]
    for each in result.divergences:
        use = [
            counts.layers[each.layer].assignments[np.array(counts.domains) == name].sum(axis=0)
            for name in (each.domain, each.other)
        ]
        assert each.divergence_nats == pytest.approx(
            scipy.spatial.distance.jensenshannon(*use) ** 2
        )
    excess = [each.excess_nats for each in result.divergences if each.domain == "prose"]
    assert result.mean_divergences["prose", "verse"] == pytest.approx(np.mean(excess))  # type: ignore[arg-type]


def random_counts(seed: int, *, of_prompt: float) -> ExpertCounts:
    """Return counts of a random router, whose prompts may deviate as a whole."""
    rng = np.random.default_rng(seed)
    assignments = np.array(
        [
            rng.multinomial(50, rng.dirichlet([of_prompt] * 16) if of_prompt else [1 / 16] * 16)
            for _ in range(40)
        ]
    )
    layer = LayerCounts(
        stack="decoder",
        layer=0,
        top_k=1,
        assignments=assignments,
        decisions=np.full(40, 50),
    )
    return ExpertCounts(
        groups=tuple(f"p{number}" for number in range(40)),
        domains=("a",) * 10 + ("b",) * 30,
        layers=(layer,),
    )


@pytest.mark.parametrize("of_prompt", [0.0, 5.0], ids=["independent tokens", "alike in a prompt"])
def test_samples_of_one_distribution_have_no_excess(of_prompt: float) -> None:
    excess, observed, random = [], [], []
    for seed in range(60):
        counts = random_counts(seed, of_prompt=of_prompt)
        (found,) = measure_specialization(counts, num_permutations=99, seed=seed).divergences
        assert found.excess_nats is not None
        assert found.divergence_nats is not None
        assert found.baseline.divergence_nats is not None
        excess.append(found.excess_nats)
        observed.append(found.divergence_nats)
        random.append(found.baseline.divergence_nats)
    error = np.std(excess, ddof=1) / np.sqrt(len(excess))
    assert abs(np.mean(excess)) < 4 * error
    # The formula holds for independent tokens alone.
    error = np.std(observed, ddof=1) / np.sqrt(len(observed))
    differs = abs(np.mean(observed) - np.mean(random)) > 4 * error
    assert differs == bool(of_prompt)


def test_a_domain_without_assignments_is_not_compared() -> None:
    counts = random_counts(0, of_prompt=0.0)
    counts.layers[0].assignments[:10] = 0
    (found,) = measure_specialization(counts, num_permutations=9).divergences
    assert (found.divergence_nats, found.null_nats) == (None, None)
    # Decisions ran fewer experts than top-k, and counts don't say which.
    assert found.baseline.divergence_nats is None


def test_many_domains_are_not_compared_in_pairs() -> None:
    names = [f"domain {number}" for number in range(MOST_DOMAINS + 1)]
    result = measure_specialization(make_counts(names), num_permutations=9)
    assert result.divergences == ()
    assert any("divergence between two domains is left out" in note for note in result.notes)
