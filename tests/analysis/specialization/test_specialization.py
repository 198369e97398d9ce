"""Specialization: the formula against another derivation, and controls that must find nothing."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from moetool.analysis.specialization.measure import measure_specialization
from moetool.errors import InputError
from moetool.trace.reading.counts import ExpertCounts, LayerCounts, count_experts
from moetool.trace.reading.reader import open_trace, read_trace

NUM_REPEATS = 200
NUM_PERMUTATIONS = 199
# Each control draws 200 p-values a layer with a fixed seed; under the null a Kolmogorov-Smirnov
# test rejects their uniformity at this level once in 1,000 such draws.
LEVEL = 0.001


@pytest.fixture(scope="module")
def counts(demo_trace: Path) -> ExpertCounts:
    return count_experts(open_trace(demo_trace), by="prompt_id")


def select_prompts(counts: ExpertCounts, index: NDArray[np.intp]) -> ExpertCounts:
    return replace(
        counts,
        groups=tuple(counts.groups[i] for i in index),
        domains=tuple(counts.domains[i] for i in index),
        layers=tuple(
            replace(layer, assignments=layer.assignments[index], decisions=layer.decisions[index])
            for layer in counts.layers
        ),
    )


def p_values(counts: ExpertCounts, labellings: list[list[str]]) -> NDArray[np.float64]:
    """Return the p-value of each labelling and layer. # (num_labellings, num_layers)"""
    return np.array(
        [
            [
                layer.p_value
                for layer in measure_specialization(
                    replace(counts, domains=tuple(labels)),
                    num_permutations=NUM_PERMUTATIONS,
                    seed=repeat,
                ).layers
            ]
            for repeat, labels in enumerate(labellings)
        ]
    )


def assert_uniform(values: NDArray[np.float64]) -> None:
    for layer in range(values.shape[1]):
        # A permutation p-value takes the values 1/200, 2/200, … 1: spread each over its step.
        jitter = np.random.default_rng(layer).random(len(values)) / (NUM_PERMUTATIONS + 1)
        test = scipy.stats.kstest(values[:, layer] - jitter, "uniform")
        assert test.pvalue > LEVEL, f"layer {layer}: p-values are not uniform, {test}"


def test_the_demo_specializes_by_domain_in_every_layer(counts: ExpertCounts) -> None:
    result = measure_specialization(counts)
    assert len(result.layers) == 6
    for layer in result.layers:
        assert layer.p_value == 1 / 1000
        assert layer.is_significant
        assert layer.excess_nats is not None
        assert layer.null_nats is not None
        assert layer.excess_nats > 10 * layer.null_nats


def test_shuffled_labels_find_nothing(counts: ExpertCounts) -> None:
    rng = np.random.default_rng(0)
    labellings = [list(rng.permutation(counts.domains)) for _ in range(NUM_REPEATS)]
    assert_uniform(p_values(counts, labellings))


def test_random_halves_of_one_domain_find_nothing(counts: ExpertCounts) -> None:
    english = select_prompts(counts, np.flatnonzero(np.array(counts.domains) == "english"))
    half = len(english.groups) // 2
    rng = np.random.default_rng(1)
    labellings = [list(rng.permutation(["a"] * half + ["b"] * half)) for _ in range(NUM_REPEATS)]
    assert_uniform(p_values(english, labellings))


def mutual_information(table: NDArray[np.float64]) -> float:
    """Return `sum p ln(p / (p_row p_column))`, a second derivation of the same number."""
    joint = table / table.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())


def test_mutual_information_agrees_with_its_other_formula(
    counts: ExpertCounts, demo_trace: Path
) -> None:
    frame = read_trace(demo_trace)
    for layer in measure_specialization(counts, num_permutations=1).layers:
        rows = frame[frame["layer"] == layer.layer]
        table = rows.groupby(["domain", "expert"], observed=True).size().unstack(fill_value=0)
        expected = mutual_information(table.to_numpy().astype(float))
        assert layer.mutual_information_nats == pytest.approx(expected, abs=1e-12)


def two_domains(assignments: list[list[int]], *, top_k: int = 1) -> ExpertCounts:
    table = np.array(assignments, dtype=np.int64)
    layer = LayerCounts(
        stack="decoder",
        layer=0,
        top_k=top_k,
        assignments=table,
        decisions=table.sum(1) // top_k,
    )
    half = len(table) // 2
    return ExpertCounts(
        groups=tuple(f"p{i}" for i in range(len(table))),
        domains=("a",) * half + ("b",) * half,
        layers=(layer,),
    )


def test_experts_that_give_the_domain_away_carry_its_whole_entropy() -> None:
    result = measure_specialization(two_domains([[10, 0]] * 20 + [[0, 10]] * 20))
    (layer,) = result.layers
    assert layer.mutual_information_nats == pytest.approx(np.log(2))
    assert layer.p_value == 1 / 1000


def test_experts_used_alike_carry_nothing_and_are_not_significant() -> None:
    (layer,) = measure_specialization(two_domains([[5, 5]] * 40)).layers
    assert layer.mutual_information_nats == pytest.approx(0, abs=1e-12)
    assert layer.p_value == 1
    assert not layer.is_significant


def test_the_seed_alone_decides_the_permutations(counts: ExpertCounts) -> None:
    first = measure_specialization(counts, num_permutations=99, seed=7)
    again = measure_specialization(counts, num_permutations=99, seed=7)
    other = measure_specialization(counts, num_permutations=99, seed=8)
    assert first == again
    assert first.layers[0].null_nats != other.layers[0].null_nats


def test_one_domain_alone_is_refused(counts: ExpertCounts) -> None:
    english = select_prompts(counts, np.flatnonzero(np.array(counts.domains) == "english"))
    with pytest.raises(InputError, match="of one domain, 'english'"):
        measure_specialization(english)


def with_idle_layer(counts: ExpertCounts) -> ExpertCounts:
    """Return the counts with one more layer, none of whose decisions ran an expert."""
    (layer,) = counts.layers
    idle = replace(layer, layer=1, assignments=np.zeros_like(layer.assignments))
    return replace(counts, layers=(layer, idle))


def test_a_layer_where_no_expert_ran_has_neither_information_nor_p() -> None:
    counts = two_domains([[10, 0]] * 20 + [[0, 10]] * 20)
    alone = measure_specialization(counts)
    result = measure_specialization(with_idle_layer(counts))
    first, idle = result.layers
    assert first == alone.layers[0]
    assert set(astuple(idle)[5:]) == {None}
    assert not idle.is_significant
    assert any("neither MI nor p" in note for note in result.notes)
    assert {cell.lift for cell in result.experts if cell.layer == 1} == {None}
    assert any("Lift is unknown in 4 of 8 cases" in note for note in result.notes)


def test_a_layer_that_ran_for_one_domain_only_is_not_significant() -> None:
    counts = two_domains([[10, 5]] * 20 + [[0, 0]] * 20)
    (layer,) = counts.layers
    counts = replace(counts, layers=(replace(layer, decisions=np.full(40, 15)),))
    result = measure_specialization(counts)
    assert result.layers[0].mutual_information_nats == pytest.approx(0, abs=1e-12)
    assert result.layers[0].normalized is None
    assert result.layers[0].p_value == 1
    assert any("one domain only" in note for note in result.notes)


def test_domains_beyond_measure_are_refused() -> None:
    num_prompts = 12_000
    layer = LayerCounts(
        stack="decoder",
        layer=0,
        top_k=1,
        assignments=np.ones((num_prompts, 1), dtype=np.int64),
        decisions=np.ones(num_prompts, dtype=np.int64),
    )
    names = tuple(map(str, range(num_prompts)))
    with pytest.raises(InputError, match="too many to compare"):
        measure_specialization(ExpertCounts(names, names, (layer,)))
