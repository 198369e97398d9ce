"""Two simulated routers that choose independently land on the baselines of a comparison."""

from __future__ import annotations

import numpy as np
import pytest

from moetool.analysis.comparison.result import Agreement, Verdict
from tests.analysis.comparison.two_traces import compare_rows, make_pair
from tests.analysis.dropped_choices import drop_choices
from tests.analysis.random_traces import Router

MEASURES = ("overlap", "jaccard", "saturation", "changed_decisions", "first_choice_flips")
LENGTHS = (40,) * 50
# Shares of choices, and of whole decisions, that ran no expert: of either trace.
DROPS = [((0.0, 0.0), (0.0, 0.0)), ((0.6, 0.0), (0.6, 0.0)), ((0.5, 0.2), (0.1, 0.1))]


def check_baseline(agreement: Agreement) -> None:
    number = agreement.num_decisions
    for name in MEASURES:
        expected, seen = getattr(agreement.baseline, name), getattr(agreement, name)
        # Values from 0 to 1 vary at most as much as coin tosses do.
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / number) + 1e-9, name


@pytest.mark.parametrize("drops", DROPS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (16, 1), (12, 5)])
def test_two_random_routers_land_on_the_baseline(
    num_experts: int, top_k: int, drops: tuple[tuple[float, float], ...]
) -> None:
    router = Router(num_experts=num_experts, top_k=top_k, num_layers=1)
    first, second = (
        drop_choices(table, share, share_of_decisions=idle, seed=seed)
        for seed, (table, (share, idle)) in enumerate(
            zip(make_pair(router=router, share=1, lengths=LENGTHS), drops, strict=True)
        )
    )
    result = compare_rows(first, second, router=router)
    (layer,) = result.layers
    assert layer.popularity is not None
    for agreement in (layer, result.overall, *result.groups, *result.positions, *result.cells):
        check_baseline(agreement)
    for name in ("overlap", "saturation", "first_choice_flips"):
        assert getattr(layer.popularity, name) == pytest.approx(getattr(layer, name), abs=0.05)
    assert result.verdict is Verdict.UNRELATED
    dropped = [note for note in result.notes if note.endswith("choices ran no expert.")]
    assert len(dropped) == sum(any(shares) for shares in drops if top_k > 1 or shares[1])


def test_a_choice_that_ran_no_expert_lowers_the_baseline() -> None:
    """Half of the second choices: sets of 1 and 1, 1 and 2, or 2 and 2 of 8, a quarter each."""
    router = Router(num_layers=1)
    table = make_pair(router=router, lengths=(400,) * 5)[0]
    first, second = (drop_choices(table, 0.5, seed=seed) for seed in (1, 2))
    (layer,) = compare_rows(first, second, router=router).layers
    # 1/8 for 1 and 1, and for 1 and 2: 2/8/2. 1/4 for 2 and 2.
    assert layer.baseline.overlap == pytest.approx(3 / 4 / 8 + 1 / 4 / 4, abs=0.005)
    assert layer.overlap is not None
    assert layer.overlap > 0.6


def test_real_agreement_of_few_experts_is_not_called_unrelated() -> None:
    """Most decisions ran only the first choice: often the same one in both traces."""
    router = Router(num_layers=1, popularity=(9, 9, 9, 1, 1, 1, 1, 1))
    first, drawn = make_pair(router=router, share=0.6, lengths=LENGTHS)
    first, second = (
        drop_choices(table, 0.9, seed=seed) for seed, table in enumerate((first, drawn))
    )
    result = compare_rows(first, second, router=router)
    assert result.overall.popularity is not None
    assert result.overall.overlap_low is not None
    assert result.overall.popularity.overlap is not None
    assert result.overall.popularity.overlap < result.overall.overlap_low
    assert result.verdict is Verdict.DIFFERENT


def test_two_routers_with_one_skew_land_on_the_baseline_of_popularity() -> None:
    router = Router(num_layers=1, popularity=(20, 10, 5, 1, 1, 1, 1, 1))
    first, second = (
        drop_choices(table, 0.4, seed=seed)
        for seed, table in enumerate(make_pair(router=router, share=1, lengths=(60,) * 40))
    )
    (layer,) = compare_rows(first, second, router=router).layers
    assert layer.popularity is not None
    assert layer.baseline.overlap is not None
    assert layer.popularity.overlap is not None
    assert layer.overlap == pytest.approx(layer.popularity.overlap, abs=0.03)
    assert layer.first_choice_flips == pytest.approx(
        layer.popularity.first_choice_flips, abs=5 * np.sqrt(0.25 / 2400)
    )
    assert layer.popularity.overlap > layer.baseline.overlap + 0.1


@pytest.mark.parametrize("dropped", [0.0, 0.6])
def test_weight_that_moves_where_sets_agree_by_chance(dropped: float) -> None:
    """A third of random pairs of 3 experts agree, with weights in any order.

    Where choices are dropped, single experts agree by chance more often, and move no weight.
    """
    router = Router(num_experts=12 if dropped else 3, top_k=2, num_layers=1)
    first, second = (
        drop_choices(table, dropped, seed=seed)
        for seed, table in enumerate(make_pair(router=router, share=1, lengths=(200,) * 120))
    )
    result = compare_rows(first, second, router=router)
    (layer,) = result.layers
    assert layer.weight_change is not None
    assert layer.baseline.weight_change is not None
    # Of this many sets; shares of moved weight deviate by less than 0.3.
    assert layer.changed_decisions is not None
    num_equal = layer.num_decisions * (1 - layer.changed_decisions)
    error = 0.3 * np.sqrt(2 / num_equal)
    assert num_equal > 400
    assert abs(layer.weight_change - layer.baseline.weight_change) < 4 * error


def test_sizes_of_which_only_some_pairs_are_drawn_count_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = Router(num_experts=3, top_k=2, num_layers=1)
    first, second = (
        drop_choices(table, 0.3, seed=seed)
        for seed, table in enumerate(make_pair(router=router, share=1, lengths=(100,) * 60))
    )
    whole = compare_rows(first, second, router=router).layers[0].baseline.weight_change
    monkeypatch.setattr("moetool.analysis.comparison.expected._MOST_PAIRS", 400)
    part = compare_rows(first, second, router=router).layers[0].baseline.weight_change
    assert part == pytest.approx(whole, abs=4 * 0.3 / np.sqrt(400) * 0.5)
