"""P-values of every domain and expert, with and without regard to how many are looked at."""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from moetool.analysis.specialization.measure import measure_specialization
from moetool.analysis.specialization.significance import (
    PermutationTest,
    permute_labels,
)
from moetool.trace.reading.counts import ExpertCounts, LayerCounts

NUM_PERMUTATIONS = 199


def make_counts(
    num_prompts: int = 24, *, num_layers: int = 2, num_experts: int = 6, seed: int = 0
) -> ExpertCounts:
    """Return counts of a router whose prompts differ from each other, and domains do not."""
    rng = np.random.default_rng(seed)
    layers = []
    decisions = rng.integers(10, 60, size=num_prompts)
    for number in range(num_layers):
        preference = rng.dirichlet([2.0] * num_experts, size=num_prompts)
        assignments = np.array(
            [rng.multinomial(size, one) for size, one in zip(decisions, preference, strict=True)]
        )
        layers.append(
            LayerCounts(
                stack="decoder",
                layer=number,
                top_k=1,
                assignments=assignments,
                decisions=decisions,
            )
        )
    names = ("a", "b", "b")
    return ExpertCounts(
        groups=tuple(f"p{number}" for number in range(num_prompts)),
        domains=tuple(names[number % 3] for number in range(num_prompts)),
        layers=tuple(layers),
    )


def label_of(counts: ExpertCounts) -> NDArray[np.intp]:
    return np.array([ord(domain) - ord("a") for domain in counts.domains])


def permute(counts: ExpertCounts, *, seed: int = 0) -> PermutationTest:
    return permute_labels(
        counts, label_of(counts), num_domains=2, num_permutations=NUM_PERMUTATIONS, seed=seed
    )


def score_by_loops(layer: LayerCounts, label: NDArray[np.intp], domain: int, expert: int) -> float:
    """Return the score of a cell, prompt by prompt."""
    share = sum(layer.assignments[:, expert]) / sum(layer.decisions)
    terms = [
        layer.assignments[prompt, expert] - layer.decisions[prompt] * share
        for prompt in range(len(label))
    ]
    mine = [term for term, one in zip(terms, label, strict=True) if one == domain]
    variance = float(np.var(terms, ddof=1))
    return float(sum(mine) / np.sqrt(len(mine) * (1 - len(mine) / len(terms)) * variance))


def test_p_values_are_those_of_a_count_by_loops() -> None:
    counts = make_counts()
    found = permute(counts)
    # The same permutations, drawn as the function draws them: in batches of 64.
    rng = np.random.default_rng(0)
    label = label_of(counts)
    drawn = np.vstack(
        [
            rng.permuted(np.tile(label, (size, 1)), axis=1)
            for size in (64, 64, 64, NUM_PERMUTATIONS - 192)
        ]
    )
    cells = [
        (index, domain, expert) for index in (0, 1) for domain in (0, 1) for expert in range(6)
    ]
    scores = np.array(
        [
            [abs(score_by_loops(counts.layers[index], one, *cell)) for index, *cell in cells]
            for one in (label, *drawn)
        ]
    )
    largest = scores.max(axis=1)
    for column, (index, domain, expert) in enumerate(cells):
        reached = (scores[1:, column] >= scores[0, column] - 1e-9).sum()
        among_all = (largest[1:] >= scores[0, column] - 1e-9).sum()
        total = 1 + NUM_PERMUTATIONS
        assert found.cell_p_values[index][domain, expert] == (1 + reached) / total
        assert found.familywise_p_values[index][domain, expert] == (1 + among_all) / total


def test_the_smallest_of_all_cells_is_rarely_small_by_chance() -> None:
    """In 100 traces without domains, one cell or more is taken for one of a domain in about 5."""
    num_traces = 100
    smallest = []
    alone = []
    for seed in range(num_traces):
        found = permute(make_counts(seed=seed), seed=seed)
        smallest.append(min(each.min() for each in found.familywise_p_values))
        alone.append(min(each.min() for each in found.cell_p_values))
    wrong = sum(p_value <= 0.05 for p_value in smallest)
    assert scipy.stats.binomtest(wrong, num_traces, 0.05, alternative="greater").pvalue > 0.001
    # Without the correction, most of these traces have such a cell.
    assert sum(p_value <= 0.05 for p_value in alone) > num_traces / 4


def test_a_domain_expert_among_many_cells_is_found() -> None:
    counts = make_counts(num_prompts=60)
    layer = counts.layers[1]
    layer.assignments[label_of(counts) == 0, 3] += layer.decisions[label_of(counts) == 0]
    result = measure_specialization(counts, num_permutations=999)
    cells = {(cell.domain, cell.layer, cell.expert): cell for cell in result.experts}
    found = cells["a", 1, 3]
    assert found.is_domain_expert
    assert found.familywise_p_value == found.p_value == 1 / 1000
    assert not cells["b", 1, 3].is_domain_expert
    in_layer_0 = [cell for cell in result.experts if cell.layer == 0]
    assert not any(cell.is_domain_expert for cell in in_layer_0)
    assert result.verdict.num_experts == 12
    # What expert 3 gets more of, the others get less of: some are experts of the other domain.
    assert 1 <= result.verdict.num_certain_experts <= result.verdict.num_domain_experts <= 6


def test_equal_prompts_are_not_significant() -> None:
    layer = LayerCounts(
        stack="decoder",
        layer=0,
        top_k=1,
        assignments=np.full((10, 3), 7),
        decisions=np.full(10, 21),
    )
    names = tuple(f"p{number}" for number in range(10))
    result = measure_specialization(ExpertCounts(names, ("a", "b") * 5, (layer,)))
    for cell in result.experts:
        assert (cell.p_value, cell.q_value, cell.familywise_p_value) == (1, 1, 1)


def test_an_expert_that_was_never_chosen_has_no_p() -> None:
    counts = make_counts()
    counts.layers[0].assignments[:, 2] = 0
    for cell in measure_specialization(counts, num_permutations=19).experts:
        is_known = (cell.layer, cell.expert) != (0, 2)
        assert (cell.p_value is not None) == is_known
        assert (cell.q_value is not None) == is_known
        assert (cell.familywise_p_value is not None) == is_known
