"""The agreement of two traces, next to a reading of every decision in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.comparison.baseline import expect_uniform
from moetool.analysis.comparison.result import Agreement, Verdict
from tests.analysis.comparison.two_traces import Values, compare_rows, make_pair, refer
from tests.analysis.random_traces import Router, make_random_trace

MEASURES = (
    "overlap",
    "jaccard",
    "saturation",
    "changed_decisions",
    "first_choice_flips",
    "weight_change",
)
WITH_LIMITS = ("overlap", "changed_decisions", "first_choice_flips")


def check(agreement: Agreement, expected: Values) -> None:
    for name in MEASURES:
        mean, low, high = expected.get(name, (None, None, None))
        assert getattr(agreement, name) == (mean if mean is None else pytest.approx(mean)), name
        if name in WITH_LIMITS:
            limits = getattr(agreement, f"{name}_low"), getattr(agreement, f"{name}_high")
            assert limits == ((low, high) if low is None else pytest.approx((low, high))), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("router", [Router(), Router(num_experts=16, top_k=5), Router(top_k=1)])
def test_measures_are_those_of_the_decisions_one_by_one(router: Router, seed: int) -> None:
    first, second = make_pair(router=router, seed=seed, num_prompt_tokens=4)
    result = compare_rows(first, second, router=router, by="phase")
    expected = refer(first, second, lambda decision: decision.layer)
    assert [layer.layer for layer in result.layers] == sorted(expected, key=repr)
    for layer in result.layers:
        check(layer, expected[layer.layer])
    check(result.overall, refer(first, second, lambda _: None)[None])
    of_groups = refer(first, second, lambda decision: decision.phase)
    assert [group.group for group in result.groups] == ["decode", "prefill"]
    for group in result.groups:
        check(group, of_groups[group.group])
    of_cells = refer(first, second, lambda decision: (decision.layer, decision.phase))
    assert len(result.cells) == len(of_cells) == 2 * router.num_layers
    for cell in result.cells:
        check(cell, of_cells[cell.layer, cell.group])
    of_spans = refer(first, second, lambda decision: decision.position.bit_length())
    assert [span.first_position for span in result.positions] == [0, 1, 2, 4, 8]
    for span in result.positions:
        assert span.last_position == max(0, 2 * span.first_position - 1) or (
            span.first_position == span.last_position == 1
        )
        check(span, of_spans[span.first_position.bit_length()])


def test_the_order_of_prompts_and_rows_changes_nothing() -> None:
    first, second = make_pair()
    order = np.random.default_rng(1).permutation(second.num_rows)
    expected = compare_rows(first, second)
    assert compare_rows(first, second.take(order)) == expected
    shuffled = compare_rows(first.take(order), second)
    check_same(shuffled.overall, expected.overall)
    assert [layer.layer for layer in shuffled.layers] == [layer.layer for layer in expected.layers]
    for one, other in zip(shuffled.layers, expected.layers, strict=True):
        check_same(one, other)


def check_same(one: Agreement, other: Agreement) -> None:
    for name in (*MEASURES, *(f"{name}_low" for name in WITH_LIMITS)):
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name


@settings(max_examples=25)
@given(seed=st.integers(0, 1_000), share=st.floats(0, 1))
def test_other_names_for_the_experts_change_nothing(seed: int, share: float) -> None:
    first, second = make_pair(seed=seed, share=share, lengths=(4, 3))
    other_name = np.random.default_rng(seed).permutation(8)
    renamed = [
        table.set_column(
            table.column_names.index("expert"),
            "expert",
            pa.array(other_name[table.column("expert").to_numpy()].astype(np.int16)),
        )
        for table in (first, second)
    ]
    expected, seen = compare_rows(first, second), compare_rows(*renamed)
    check_same(seen.overall, expected.overall)
    assert seen.overall.baseline == expected.overall.baseline
    assert seen.layers[0].popularity is not None
    assert expected.layers[0].popularity is not None
    assert seen.layers[0].popularity.overlap == pytest.approx(expected.layers[0].popularity.overlap)


def test_all_experts_chosen_always_agree() -> None:
    router = Router(num_experts=4, top_k=4)
    first, second = make_pair(router=router, share=1)
    result = compare_rows(first, second, router=router)
    assert (result.overall.overlap, result.overall.changed_decisions) == (1, 0)
    assert result.layers[0].baseline.overlap == result.layers[0].baseline.jaccard == 1
    assert result.overall.first_choice_flips == pytest.approx(3 / 4, abs=0.2)
    assert result.verdict is Verdict.ALIKE


def test_baselines_in_closed_form() -> None:
    baseline = expect_uniform(64, 8, 8)
    assert baseline.overlap == baseline.saturation == 8 / 64
    assert baseline.first_choice_flips == 63 / 64
    assert expect_uniform(8, 1, 1).jaccard == pytest.approx(1 / 8)
    unequal = expect_uniform(8, 2, 4)
    assert (unequal.overlap, unequal.saturation, unequal.changed_decisions) == (1 / 4, 1 / 4, 1)
    empty = expect_uniform(8, 2, 0)
    assert (empty.overlap, empty.jaccard, empty.saturation) == (0, 0, None)
    assert empty.changed_decisions == 1


def test_a_trace_agrees_with_itself() -> None:
    table = make_random_trace()
    result = compare_rows(table, table)
    assert result.verdict is Verdict.IDENTICAL
    assert (result.overall.overlap, result.overall.weight_change) == (1, 0)
    assert result.changed_tokens == 0
    assert result.tokens == ()
    assert result.overall.changed_decisions_high is not None
    assert 0 < result.overall.changed_decisions_high < 0.1


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (0.001, Verdict.ALIKE),
        (0.075, Verdict.ALIKE),
        (0.11, Verdict.AS_ENGINES),
        (0.5, Verdict.DIFFERENT),
    ],
)
def test_the_verdict_follows_the_interval(share: float, verdict: Verdict) -> None:
    router = Router(num_experts=64, top_k=4)
    first, second = make_pair(share=share, lengths=(30,) * 20, router=router)
    result = compare_rows(first, second, router=router)
    assert result.verdict is verdict
    assert result.overall.is_well_below_engines is (share < 0.05)


def test_intervals_hold_the_mean_of_more_prompts() -> None:
    held, trials = 0, 60
    lengths = (6, 14, 9, 3, 11, 8, 5, 12, 10, 7)
    for seed in range(trials):
        first, second = make_pair(lengths=lengths, seed=seed, share=0.3)
        overall: Any = compare_rows(first, second).overall
        # A decision that is drawn again has the same two experts of eight once in 28.
        held += overall.changed_decisions_low <= 0.3 * 27 / 28 <= overall.changed_decisions_high
    # Of 60 intervals of 95 %, fewer than 51 hold the mean once in 1,000 trials.
    assert held >= 51
