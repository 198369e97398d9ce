"""Groups of experts of which every two are linked."""

from __future__ import annotations

from itertools import combinations
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moetool.analysis.coactivation.grouping import group_experts


def link(
    num_experts: int, *pairs: tuple[int, int, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    strength = np.zeros((num_experts, num_experts))
    for i, j, value in pairs:
        strength[i, j] = strength[j, i] = value
    return strength, strength > 0


def test_the_strongest_pair_is_joined_first_and_others_only_if_all_are_linked() -> None:
    chain = link(5, (0, 1, 2.0), (1, 2, 3.0), (2, 3, 2.5))
    assert group_experts(*chain) == [(1, 2)]
    triangle = link(5, (0, 1, 2.0), (1, 2, 3.0), (0, 2, 1.5), (3, 4, 1.1))
    assert group_experts(*triangle) == [(0, 1, 2), (3, 4)]


def test_of_equal_pairs_the_smaller_ids_are_joined() -> None:
    assert group_experts(*link(3, (0, 2, 1.0), (0, 1, 1.0))) == [(0, 1)]


def test_without_links_there_are_no_groups() -> None:
    assert group_experts(*link(4)) == []
    assert group_experts(*link(0)) == []


@given(st.integers(2, 8), st.integers(0, 10_000), st.randoms())
def test_groups_are_disjoint_cliques_that_do_not_depend_on_ids(
    num_experts: int, seed: int, random: Random
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.permutation(num_experts**2).reshape(num_experts, num_experts)
    strength = (values + values.T).astype(float) + np.triu(values, 1) * 1e-3
    strength = np.maximum(strength, strength.T)
    is_linked = strength > np.median(strength)
    groups = group_experts(strength, is_linked)
    members = [expert for group in groups for expert in group]
    assert len(members) == len(set(members))
    assert all(is_linked[pair] for group in groups for pair in combinations(group, 2))
    order = list(range(num_experts))
    random.shuffle(order)
    renamed = group_experts(strength[np.ix_(order, order)], is_linked[np.ix_(order, order)])
    assert {frozenset(order[one] for one in group) for group in renamed} == {
        frozenset(group) for group in groups
    }
