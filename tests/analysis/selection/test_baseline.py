"""A simulated random router lands on the stated baselines; a router with structure doesn't."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool import select_experts
from moetool.analysis.selection.baseline import NUM_ROUTERS, average_overlap
from moetool.analysis.selection.pruning.drops import count_drops, drop_of_each, keep_experts
from moetool.analysis.selection.scores import choose_experts, choose_of_each, measure_overlap
from moetool.analysis.selection.sums.parts import NUM_SPLITS, divide_prompts
from tests.analysis.dropped_choices import drop_choices
from tests.analysis.random_traces import Router, make_random_trace

RANDOM = Router(num_experts=16, top_k=4, num_layers=16)
# Decisions of a prompt: alike, and as unlike as means over prompts take them.
EVEN, UNEVEN = [30] * 20, [6] * 15 + [80] * 6


def shuffle_weights(table: pa.Table, seed: int) -> pa.Table:
    """Return rows with uneven weights, 1 : 1/2 : 1/3 : 1/4 times a factor of each decision."""
    rank = table.column("rank").to_numpy()
    factor = np.random.default_rng(seed).uniform(0.5, 2, len(rank) // 4).repeat(4)
    weight = np.where(table.column("expert").to_numpy() >= 0, factor / (1 + rank), 0)
    index = table.column_names.index("weight")
    return table.set_column(index, "weight", pa.array(weight.astype(np.float32)))


@pytest.mark.parametrize(
    ("by", "average", "lengths", "drops"),
    [
        ("token", "micro", EVEN, (0.0, 0.0)),
        ("token", "micro", EVEN, (0.6, 0.1)),
        ("gate", "micro", EVEN, (0.0, 0.0)),
        ("gate", "micro", EVEN, (0.6, 0.1)),
        ("gate", "macro", UNEVEN, (0.3, 0.0)),
        ("token", "macro", UNEVEN, (0.0, 0.0)),
    ],
)
def test_a_random_router_lands_on_the_baselines(
    by: str, average: str, lengths: list[int], drops: tuple[float, float]
) -> None:
    table = make_random_trace(lengths, router=RANDOM, seed=5)
    table = drop_choices(table, drops[0], share_of_decisions=drops[1], seed=6)
    table = shuffle_weights(table, seed=7)
    found = select_experts(
        table.to_pandas(), num_experts=16, top_k=4, prune_ratio=0.25, by=by, average=average
    )
    sizes = np.array([layer.num_selected for layer in found.layers])
    assert found.baseline is not None
    # Four standard errors of the layers' mean, and of the simulation behind the baseline.
    error = 4 * (sizes.std(ddof=1) + 0.5) / np.sqrt(len(sizes)) + 4 * 0.5 / np.sqrt(NUM_ROUTERS)
    assert abs(sizes.mean() - found.baseline.num_selected / 16) < error
    overlaps = np.array([layer.overlap for layer in found.layers])
    assert found.baseline.overlap is not None
    assert abs(overlaps.mean() - found.baseline.overlap) < 4 * overlaps.std(ddof=1) / np.sqrt(16)
    assert found.pruning is not None
    dropped = np.array([layer.overlap for layer in found.pruning.layers])
    expected = found.pruning.baseline
    assert expected.overlap is not None
    assert abs(dropped.mean() - expected.overlap) < 4 * dropped.std(ddof=1) / np.sqrt(16)
    shares = np.array([layer.dropped_share for layer in found.pruning.layers])
    assert expected.dropped_share is not None
    error = 4 * shares.std(ddof=1) * np.sqrt(1 / 16 + 1 / NUM_ROUTERS)
    assert abs(shares.mean() - expected.dropped_share) < error
    stated = [note for note in found.notes if note.endswith("choices ran no expert.")]
    assert len(stated) == (drops[0] > 0)


def test_uneven_weights_of_a_random_router_select_fewer_experts() -> None:
    """One choice of a decision has almost all weight, so that gate scores are of fewer choices."""
    router = Router(num_experts=16, top_k=4, num_layers=1)
    table = make_random_trace([5] * 8, router=router, seed=1)
    weight = np.tile([0.97, 0.01, 0.01, 0.01], table.num_rows // 4).astype(np.float32)
    table = table.set_column(table.column_names.index("weight"), "weight", pa.array(weight))
    token, gate = (
        select_experts(table.to_pandas(), num_experts=16, top_k=4, top_p=0.3, by=by).baseline
        for by in ("token", "gate")
    )
    assert token is not None
    assert gate is not None
    assert gate.num_selected < token.num_selected - 0.3


@pytest.mark.parametrize(("num_tokens", "share"), [(6, 0.0), (6, 0.5), (60, 0.5)])
def test_experts_that_no_token_chose(num_tokens: int, share: float) -> None:
    router = Router(num_experts=16, top_k=4, num_layers=60)
    table = drop_choices(make_random_trace([num_tokens], router=router, seed=2), share, seed=3)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4)
    missed = np.array([layer.num_missed for layer in found.layers])
    expected = np.array([layer.baseline.num_missed for layer in found.layers if layer.baseline])
    assert len(expected) == 60
    error = max(missed.std(ddof=1), 0.1) / np.sqrt(60)
    assert abs(missed.mean() - expected.mean()) < 4 * error


def test_a_router_with_favourites_chooses_the_same_from_both_halves() -> None:
    popularity = [100.0 if expert in (3, 7) else 1.0 for expert in range(16)]
    router = Router(num_experts=16, top_k=4, num_layers=2, popularity=popularity)
    table = make_random_trace([40] * 20, router=router)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4, top_p=0.4)
    assert found.overlap == 1.0
    assert all(set(layer.selected) == {3, 7} for layer in found.layers)


def test_figures_over_all_layers_are_sums_and_means_of_layers() -> None:
    table = make_random_trace([20] * 6, router=RANDOM)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4, prune_ratio=0.25)
    assert (found.num_experts, found.num_missed) == (16 * 16, 0)
    assert found.num_selected == sum(len(layer.selected) for layer in found.layers)
    baselines = [layer.baseline for layer in found.layers if layer.baseline is not None]
    assert found.baseline is not None
    assert found.baseline.num_selected == pytest.approx(sum(one.num_selected for one in baselines))
    overlaps = [one.overlap for one in baselines if one.overlap is not None]
    assert found.baseline.overlap == pytest.approx(np.mean(overlaps))
    assert len(overlaps) == 16
    assert found.pruning is not None
    shares = [layer.dropped_share or 0.0 for layer in found.pruning.layers]
    assert found.pruning.dropped_share == pytest.approx(np.mean(shares))


def test_halves_are_half_of_the_prompts_and_differ() -> None:
    names = [f"prompt {index}" for index in range(50)]
    members = divide_prompts(names)
    assert members[0].all()
    assert (members[1::2] != members[2::2]).all()
    assert len(members) == 1 + 2 * NUM_SPLITS
    assert (members[1:].sum(axis=1) == 25).all()
    assert len({half.tobytes() for half in members[1::2]}) == NUM_SPLITS
    assert (divide_prompts(names[::-1])[:, ::-1] == members).all()


def test_overlap_is_the_common_share_of_two_choices() -> None:
    assert measure_overlap([1, 2], [2, 3]) == 0.5
    assert measure_overlap([1], [1, 2, 3]) == 0.5
    assert measure_overlap([], []) == 1.0
    choices = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert average_overlap(choices) == pytest.approx((0.5 + 1 + 0.5 + 3 * 0) / 6)
    assert average_overlap(choices[[3, 3]]) == 1.0


@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=4),
    top_p=st.sampled_from([0.1, 0.2, 0.5, 1.0]),
    num_groups=st.sampled_from([1, 2, 3]),
)
def test_choices_of_several_routers_are_those_of_each(
    rows: list[list[int]], top_p: float, num_groups: int
) -> None:
    scores = np.array(rows) / 32  # exact, so that sums are in any order
    chosen = choose_of_each(scores, top_p=top_p)
    drops = count_drops(6, ratio=0.5, top_k=1, num_groups=num_groups)
    dropped = drop_of_each(scores, drops)
    for row, mine, left in zip(scores.round(4).tolist(), chosen, dropped, strict=True):
        assert np.flatnonzero(mine).tolist() == sorted(choose_experts(row, top_p=top_p))
        assert np.flatnonzero(~left).tolist() == keep_experts(row, drops)


def test_one_prompt_has_no_halves() -> None:
    table = make_random_trace([30], router=RANDOM)
    found = select_experts(table.to_pandas(), num_experts=16, top_k=4)
    assert found.overlap is None
    assert found.layers[0].baseline is not None
    assert found.layers[0].baseline.overlap is None
    assert any("one prompt" in note for note in found.notes)
