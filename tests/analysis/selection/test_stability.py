"""A simulated random router lands on the stated baselines; a router with structure doesn't."""

from __future__ import annotations

import numpy as np
import pytest

from moetool import select_experts
from moetool.analysis.selection.stability import (
    NUM_ROUTERS,
    expect_chosen,
    expect_dropped_share,
    measure_overlap,
    simulate_router,
)
from moetool.analysis.selection.sums import NUM_SPLITS, divide_prompts
from tests.analysis.random_traces import Router, make_random_trace

RANDOM = Router(num_experts=16, top_k=4, num_layers=24)


def test_a_random_router_lands_on_the_baselines() -> None:
    table = make_random_trace([40] * 30, router=RANDOM, seed=5)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4, prune_ratio=0.25)
    sizes = np.array([len(layer.selected) for layer in found.layers])
    bases = [layer.baseline for layer in found.layers]
    assert all(base is not None for base in bases)
    # Four standard errors of the layers' mean, and of the simulation behind the baseline.
    error = 4 * (sizes.std(ddof=1) + 0.5) / np.sqrt(len(sizes)) + 4 * 0.5 / np.sqrt(NUM_ROUTERS)
    assert abs(sizes.mean() - np.mean([base.num_selected for base in bases if base])) < error
    overlaps = np.array([layer.overlap for layer in found.layers])
    assert found.random_overlap is not None
    assert abs(overlaps.mean() - found.random_overlap) < 4 * overlaps.std(ddof=1) / np.sqrt(24)
    assert found.pruning is not None
    dropped = np.array([layer.overlap for layer in found.pruning.layers])
    assert abs(dropped.mean() - 0.25) < 4 * dropped.std(ddof=1) / np.sqrt(24)
    shares = np.array([layer.dropped_share for layer in found.pruning.layers])
    expected = np.mean([layer.random_share for layer in found.pruning.layers])
    assert abs(shares.mean() - expected) < 8 * shares.std(ddof=1) / np.sqrt(24)


def test_a_router_with_favourites_chooses_the_same_from_both_halves() -> None:
    popularity = [100.0 if expert in (3, 7) else 1.0 for expert in range(16)]
    router = Router(num_experts=16, top_k=4, num_layers=2, popularity=popularity)
    table = make_random_trace([40] * 20, router=router)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4, top_p=0.4)
    assert found.overlap == 1.0
    assert all(set(layer.selected) == {3, 7} for layer in found.layers)


@pytest.mark.parametrize("num_tokens", [10, 200, 5000])
def test_simulated_loads_have_the_moments_of_random_subsets(num_tokens: int) -> None:
    loads = np.concatenate([simulate_router(32, 4, num_tokens + extra) for extra in range(4)])
    mean, share = np.mean(loads), 4 / 32
    tokens = num_tokens + 1.5
    assert mean == pytest.approx(tokens * share, rel=0.02)
    deviation = loads.std(axis=1).mean()
    assert deviation == pytest.approx(np.sqrt(tokens * share * (1 - share)), rel=0.1)


def test_expected_numbers_have_their_limits() -> None:
    assert expect_chosen(64, 6, 10**9, top_p=0.2) == pytest.approx(13, abs=0.5)
    assert expect_dropped_share(64, 6, 10**9, num_dropped=16) == pytest.approx(0.25, abs=1e-3)
    assert expect_dropped_share(64, 6, 30, num_dropped=16) < 0.2


def test_halves_divide_the_prompts_and_depend_on_their_ids_alone() -> None:
    names = [f"prompt {index}" for index in range(500)]
    members = divide_prompts(names)
    assert members[0].all()
    assert (members[1::2] != members[2::2]).all()
    again = divide_prompts(names[::-1])
    assert (again[:, ::-1] == members).all()
    sizes = members[1::2].sum(axis=1)
    assert len(sizes) == NUM_SPLITS
    assert np.abs(sizes - 250).max() < 5 * np.sqrt(500 / 4)


def test_overlap_is_the_common_share_of_two_choices() -> None:
    assert measure_overlap([1, 2], [2, 3]) == 0.5
    assert measure_overlap([1], [1, 2, 3]) == 0.5
    assert measure_overlap([], []) == 1.0


def test_one_prompt_has_no_halves() -> None:
    table = make_random_trace([30], router=RANDOM)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4)
    assert found.overlap is None
    assert found.layers[0].baseline is not None
    assert found.layers[0].baseline.overlap is None
    assert any("one prompt" in note for note in found.notes)
