"""Lift by domain, against values worked out by hand and properties of any lift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from moetool.analysis.specialization.lift import (
    DomainExpert,
    find_most_lifted,
    measure_lift,
    sum_by_domain,
)
from moetool.trace.reading.counts import ExpertCounts, LayerCounts

NUM_EXPERTS, TOP_K = 5, 2


def make_layer(
    assignments: ArrayLike, *, top_k: int = 1, layer: int = 0, stack: str = "decoder"
) -> LayerCounts:
    rows = np.array(assignments, dtype=np.int64)
    decisions = rows.sum(axis=1) // top_k
    return LayerCounts(stack=stack, layer=layer, top_k=top_k, assignments=rows, decisions=decisions)


def make_counts(domains: Sequence[str], *layers: LayerCounts) -> ExpertCounts:
    groups = tuple(f"p{number}" for number in range(len(domains)))
    return ExpertCounts(groups=groups, domains=tuple(domains), layers=layers)


def cells_of(
    domains: Sequence[str], assignments: ArrayLike, *, top_k: int = 1
) -> list[DomainExpert]:
    return measure_lift(make_counts(domains, make_layer(assignments, top_k=top_k)))


@st.composite
def counted_prompts(draw: st.DrawFn) -> tuple[list[str], list[list[int]]]:
    """Prompts of a few domains, whose tokens choose experts at random, top-2 of five."""
    num_prompts = draw(st.integers(1, 6))
    domains = draw(st.lists(st.sampled_from("abc"), min_size=num_prompts, max_size=num_prompts))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    assignments = []
    for _ in range(num_prompts):
        num_tokens = draw(st.integers(1, 20))
        experts = rng.random((num_tokens, NUM_EXPERTS)).argsort(axis=1)[:, :TOP_K]
        assignments.append(np.bincount(experts.ravel(), minlength=NUM_EXPERTS).tolist())
    return domains, assignments


def test_share_and_lift_are_as_worked_out_by_hand() -> None:
    cells = cells_of(["code", "prose"], [[9, 1, 0], [1, 9, 20]])
    found = {(cell.domain, cell.expert): cell for cell in cells}
    assert [cell.tokens for cell in cells] == [10, 10, 10, 30, 30, 30]
    assert [cell.assignments for cell in cells] == [9, 1, 0, 1, 9, 20]
    assert [cell.share for cell in cells] == pytest.approx([0.9, 0.1, 0, 1 / 30, 0.3, 2 / 3])
    assert {cell.even_share for cell in cells} == {1 / 3}
    # 10 of all 40 tokens go to expert 0: 2.5 of the ten of code and 7.5 of the thirty of prose.
    assert found["code", 0].lift == pytest.approx(9 / 2.5)
    assert found["prose", 0].lift == pytest.approx(1 / 7.5)
    assert found["code", 2].lift == 0
    assert found["prose", 2].lift == pytest.approx(20 / 15)


def test_prompts_of_a_domain_are_taken_together() -> None:
    one = cells_of(["a", "b", "a"], [[1, 2, 0], [4, 0, 1], [0, 3, 5]])
    other = cells_of(["a", "b"], [[1, 5, 5], [4, 0, 1]])
    assert [(cell.share, cell.lift) for cell in one] == [(cell.share, cell.lift) for cell in other]


@settings(deadline=None)
@given(counted_prompts())
def test_shares_of_a_domain_sum_to_top_k(counted: tuple[list[str], list[list[int]]]) -> None:
    domains, assignments = counted
    cells = cells_of(domains, assignments, top_k=TOP_K)
    assert len(cells) == len(set(domains)) * NUM_EXPERTS
    for domain in set(domains):
        own = [cell for cell in cells if cell.domain == domain]
        assert sum(cell.share or 0 for cell in own) == pytest.approx(TOP_K)
        assert {cell.even_share for cell in own} == {TOP_K / NUM_EXPERTS}


@settings(deadline=None)
@given(counted_prompts())
def test_the_mean_lift_over_tokens_is_one(
    counted: tuple[list[str], list[list[int]]],
) -> None:
    domains, assignments = counted
    cells = cells_of(domains, assignments, top_k=TOP_K)
    for expert in range(NUM_EXPERTS):
        own = [cell for cell in cells if cell.expert == expert]
        if sum(cell.assignments for cell in own):
            lifts = [(cell.lift or 0) * cell.tokens for cell in own]
            assert sum(lifts) == pytest.approx(sum(cell.tokens for cell in own))
        else:
            assert {cell.lift for cell in own} == {None}


@settings(deadline=None)
@given(counted_prompts())
def test_lift_is_share_over_share_as_the_table_says(
    counted: tuple[list[str], list[list[int]]],
) -> None:
    domains, assignments = counted
    cells = cells_of(domains, assignments, top_k=TOP_K)
    for cell in cells:
        own = [each for each in cells if each.expert == cell.expert]
        overall = sum(each.assignments for each in own) / sum(each.tokens for each in own)
        assert cell.share is not None
        if overall:
            assert cell.lift == pytest.approx(cell.share / overall)


@settings(deadline=None)
@given(counted_prompts(), st.permutations(range(NUM_EXPERTS)))
def test_renumbering_experts_renumbers_the_table(
    counted: tuple[list[str], list[list[int]]], new_number: list[int]
) -> None:
    domains, assignments = counted
    renumbered = np.zeros_like(assignments)
    renumbered[:, new_number] = assignments
    before = {
        (cell.domain, new_number[cell.expert]): (cell.assignments, cell.share, cell.lift_low)
        for cell in cells_of(domains, assignments, top_k=TOP_K)
    }
    after = {
        (cell.domain, cell.expert): (cell.assignments, cell.share, cell.lift_low)
        for cell in cells_of(domains, renumbered, top_k=TOP_K)
    }
    assert after == before


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_where_domains_behave_alike_every_lift_is_one(
    assignments: list[int], sizes: list[int]
) -> None:
    domains = [f"d{number}" for number in range(len(sizes))]
    cells = cells_of(domains, np.outer(sizes, assignments))
    chosen = [cell.lift for cell in cells if assignments[cell.expert]]
    assert chosen == pytest.approx([1] * len(sizes) * np.count_nonzero(assignments))
    assert {cell.lift for cell in cells if not assignments[cell.expert]} <= {None}


def test_a_single_domain_has_no_lift() -> None:
    cells = cells_of(["a", "a"], [[3, 0, 1], [2, 2, 2]])
    assert [cell.lift for cell in cells] == pytest.approx([1, 1, 1])


def test_a_decision_that_ran_no_expert_lowers_the_share() -> None:
    layer = LayerCounts(
        stack="decoder",
        layer=0,
        top_k=1,
        assignments=np.array([[3, 0], [0, 4]]),
        decisions=np.array([6, 4]),
    )
    cells = measure_lift(make_counts(["a", "b"], layer))
    assert [cell.share for cell in cells] == [0.5, 0, 0, 1]
    assert cells[0].lift == pytest.approx(0.5 / (3 / 10))


def test_a_domain_without_decisions_has_no_share_and_no_lift() -> None:
    cells = cells_of(["a", "b"], [[3, 1], [0, 0]])
    assert [(cell.tokens, cell.share, cell.lift) for cell in cells[2:]] == [(0, None, None)] * 2


def test_cells_come_in_the_order_of_layers_domains_and_experts() -> None:
    layers = [
        make_layer([[1, 2], [3, 4]], layer=1, stack="encoder"),
        make_layer([[1, 2], [3, 4]], layer=0),
    ]
    cells = measure_lift(make_counts(["z", "a"], *layers))
    assert [(cell.stack, cell.layer, cell.domain, cell.expert) for cell in cells] == [
        (stack, layer, domain, expert)
        for stack, layer in [("encoder", 1), ("decoder", 0)]
        for domain in ("z", "a")
        for expert in (0, 1)
    ]


def repeat(assignments: ArrayLike, *, prompts: int = 20) -> NDArray[np.int64]:
    """Return the counts of two domains, each row repeated as many prompts of its domain."""
    return np.repeat(np.array(assignments), prompts, axis=0)


def test_the_most_lifted_experts_of_a_domain_are_found_over_all_layers() -> None:
    layers = [
        make_layer(repeat([[9, 1, 5], [1, 9, 5]]), layer=0),
        make_layer(repeat([[0, 7, 8], [8, 7, 0]]), layer=1),
    ]
    ranked = find_most_lifted(measure_lift(make_counts(["b"] * 20 + ["a"] * 20, *layers)))
    assert list(ranked) == ["a", "b"]
    assert [(cell.layer, cell.expert) for cell in ranked["b"]] == [(1, 2), (0, 0)]
    assert [(cell.layer, cell.expert) for cell in ranked["a"]] == [(1, 0), (0, 1)]


def test_an_expert_that_a_domain_does_not_prefer_is_not_listed() -> None:
    """An expert that a domain never chose, or chose no more than all others, is not listed."""
    layer = make_layer(repeat([[9, 5, 0, 6], [3, 5, 3, 9]]))
    ranked = find_most_lifted(measure_lift(make_counts(["a"] * 20 + ["b"] * 20, layer)))
    assert {domain: [cell.expert for cell in cells] for domain, cells in ranked.items()} == {
        "a": [0],
        "b": [2, 3],
    }


def test_a_few_assignments_do_not_top_the_list_with_a_larger_lift() -> None:
    """Expert 0 was chosen twice, only by `a`; expert 1 a hundred times as often, mostly by `a`."""
    assignments = np.zeros((40, 3), dtype=np.int64)
    assignments[:20] = [0, 15, 5]
    assignments[20:] = [0, 5, 15]
    assignments[:2] = [1, 15, 4]
    cells = measure_lift(make_counts(["a"] * 20 + ["b"] * 20, make_layer(assignments)))
    rare, common = (next(cell for cell in cells if cell.expert == expert) for expert in (0, 1))
    assert (rare.lift, common.lift) == (2, 1.5)
    assert [cell.expert for cell in find_most_lifted(cells)["a"]] == [1]


def test_sums_by_domain_keep_the_order_asked_for() -> None:
    layer = make_layer([[1, 0], [2, 3], [4, 4]])
    assignments, decisions = sum_by_domain(layer, ["a", "b", "a"], ["b", "a"])
    assert assignments.tolist() == [[2, 3], [5, 4]]
    assert decisions.tolist() == [5, 9]
