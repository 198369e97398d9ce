"""Counts, lifts and tests of pairs, next to plain Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moetool.analysis.coactivation import pair_counts, tally
from moetool.analysis.coactivation.measure import measure_coactivation
from moetool.analysis.coactivation.pair_counts import LayerPairs
from moetool.analysis.coactivation.result import Coactivation
from moetool.trace.reading.reader import TraceSource, open_trace
from moetool.trace.windows import reader as windows
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.coactivation.reference import (
    count_experts,
    count_pairs,
    find_deviation,
    find_lift,
    select_layer,
)
from tests.analysis.random_traces import Router, make_random_trace, open_rows

SKEWED = Router(num_experts=6, top_k=3, popularity=(9, 5, 3, 2, 1, 1))
LENGTHS = (40, 25, 9, 60, 31)


def measure(source: TraceSource, *, num_listed: int = 100) -> Coactivation:
    return measure_coactivation(DecisionReader(source), num_listed=num_listed)


@pytest.fixture
def table() -> pa.Table:
    whole = make_random_trace(LENGTHS, router=SKEWED, seed=3)
    # Some decisions have fewer experts.
    kept = np.random.default_rng(0).random(whole.num_rows) > 0.1
    kept |= whole.column("rank").to_numpy() == 0
    ranks = whole.column("rank").to_numpy()
    kept &= ~((ranks == 2) & ~np.roll(kept, 1))
    expert = np.where(kept, whole.column("expert").to_numpy(), -1).astype(np.int16)
    weight = np.where(kept, whole.column("weight").to_numpy(), 0).astype(np.float32)
    for name, values in (("expert", expert), ("weight", weight)):
        whole = whole.set_column(whole.column_names.index(name), name, pa.array(values))
    return whole


@pytest.mark.parametrize("dense_cost", [0, 1_000])
def test_every_pair_has_the_counts_and_lift_of_plain_python(
    table: pa.Table, dense_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_counts, "_DENSE_COST", dense_cost)
    result = measure(open_rows(table, router=SKEWED))
    for layer in result.layers:
        decisions = select_layer(table, layer.layer)
        counts, loads = count_pairs(decisions), count_experts(decisions)
        assert layer.num_tokens == len(decisions)
        assert layer.num_pairs == 15
        rows = list(layer.matrix.iter_rows())
        assert [(row["expert_i"], row["expert_j"]) for row in rows] == list(
            combinations(range(6), 2)
        )
        for row in rows:
            pair = row["expert_i"], row["expert_j"]
            assert row["count"] == counts[pair]
            assert row["probability"] == pytest.approx(counts[pair] / len(decisions))
            assert row["lift"] == pytest.approx(find_lift(decisions, *pair))
            assert row["given_i"] == pytest.approx(counts[pair] / loads[pair[0]])
            assert row["given_j"] == pytest.approx(counts[pair] / loads[pair[1]])


@pytest.mark.parametrize("dense_cost", [0, 1_000])
def test_intervals_are_those_of_prompts(
    table: pa.Table, dense_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_counts, "_DENSE_COST", dense_cost)
    monkeypatch.setattr(pair_counts, "_DECISIONS_AT_ONCE", 50)
    for layer in measure(open_rows(table, router=SKEWED)).layers:
        decisions = select_layer(table, layer.layer)
        for row in layer.matrix.iter_rows():
            i, j = row["expert_i"], row["expert_j"]
            by_prompt = [
                sum({i, j} <= {*one.experts} for one in decisions if one.prompt_id == prompt)
                for prompt in {one.prompt_id for one in decisions}
            ]
            freedom = sum(by_prompt) ** 2 / sum(number**2 for number in by_prompt) - 1
            if freedom < 1e-9:
                assert (row["lift_low"], row["lift_high"], row["p_value"]) == (None, None, None)
                continue
            reach = stats.t.ppf(0.975, freedom) * find_deviation(decisions, i, j)
            # Student's t is approximated, with wider limits for the fewest degrees of freedom.
            found = np.log(row["lift"] / row["lift_low"])
            assert found / reach > 0.99
            assert found / reach < 1.06 or freedom < 2
            assert np.log(row["lift_high"] / row["lift"]) == pytest.approx(found)


def test_a_p_value_claims_no_more_than_prompts_can_show() -> None:
    table = make_random_trace([40] * 30, router=SKEWED)
    rank = table.column("rank").to_numpy()
    # Experts 0 and 1 come together, without exception; 2 and 3, too.
    together = np.where(
        rank < 2, np.repeat(np.arange(len(rank) // 3) % 2 * 2, 3) + rank, 4 + rank % 2
    )
    table = table.set_column(
        table.column_names.index("expert"), "expert", pa.array(together.astype(np.int16))
    )
    values = np.concatenate(
        [layer.matrix.p_value for layer in measure(open_rows(table, router=SKEWED)).layers]
    )
    assert np.nanmin(values) == 1e-6


def test_pairs_with_the_next_layer_have_the_counts_of_plain_python(table: pa.Table) -> None:
    result = measure(open_rows(table, router=SKEWED))
    assert [layer.next_layer and layer.next_layer.layer for layer in result.layers] == [1, 2, None]
    for layer in result.layers[:-1]:
        assert layer.next_layer is not None
        here, there = (
            {(one.prompt_id, one.position): one.experts for one in select_layer(table, number)}
            for number in (layer.layer, layer.next_layer.layer)
        )
        assert layer.next_layer.num_tokens == len(here)
        for row in layer.next_layer.matrix.iter_rows():
            i, j = row["expert_i"], row["expert_j"]
            both = sum(i in here[token] and j in there[token] for token in here)
            one = sum(i in experts for experts in here.values())
            other = sum(j in experts for experts in there.values())
            assert row["count"] == both
            assert row["lift"] == pytest.approx(both * len(here) / (one * other))


def test_tokens_that_one_of_two_layers_lacks_are_left_out() -> None:
    whole = make_random_trace(LENGTHS, router=SKEWED)
    layer, position = whole.column("layer").to_numpy(), whole.column("position").to_numpy()
    part = whole.filter(pa.array((layer != 1) | (position % 3 > 0)))
    result = measure(open_rows(part, router=SKEWED))
    assert result.layers[0].next_layer is not None
    num_tokens = sum(position % 3 > 0 for length in LENGTHS for position in range(length))
    assert result.layers[0].next_layer.num_tokens == num_tokens
    here, there = (
        {(one.prompt_id, one.position): one.experts for one in select_layer(part, number)}
        for number in (0, 1)
    )
    for row in result.layers[0].next_layer.matrix.iter_rows():
        assert row["count"] == sum(
            row["expert_i"] in here[token] and row["expert_j"] in there[token] for token in there
        )


def test_groups_of_tokens_are_counted_apart(table: pa.Table) -> None:
    result = measure(open_rows(table, router=SKEWED))
    for layer in result.layers:
        assert [each.group for each in layer.by_group] == ["code", "prose"]
        for each in layer.by_group:
            mine = [one for one in select_layer(table, layer.layer) if one.domain == each.group]
            assert each.num_tokens == len(mine)
            counts = count_pairs(mine)
            for pair in each.pairs:
                assert pair.count == counts[pair.experts]
                assert pair.lift == pytest.approx(find_lift(mine, *pair.experts))


def test_groups_are_tested_like_the_trace_of_their_prompts(
    table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = measure(open_rows(table, router=SKEWED))
    for number, name in enumerate(("code", "prose")):
        is_mine = pa.array(np.array(table.column("domain").to_pylist()) == name)
        alone = measure(open_rows(table.filter(is_mine), router=SKEWED))
        for layer, other in zip(result.layers, alone.layers, strict=True):
            found = layer.by_group[number]
            # Groups list ten of the pairs.
            wanted = {pair.experts: pair for pair in other.pairs}
            assert len(found.pairs) == 10
            assert all(pair == wanted[pair.experts] for pair in found.pairs)
            assert found.baseline is not None
            assert other.baseline is not None
            assert found.baseline == replace(other.baseline, strongest_lift=None)
    monkeypatch.setattr(tally, "_MATRICES_PER_GROUP", 2**30)
    without = measure(open_rows(table, router=SKEWED))
    for layer in without.layers:
        for each in layer.by_group:
            assert all((pair.expected_lift, pair.p_value) == (None, None) for pair in each.pairs)
            assert each.baseline is not None
    assert any("single groups are not tested" in note for note in without.notes)


def test_lists_hold_the_largest_lifts_and_rows_hold_all(table: pa.Table) -> None:
    source = open_rows(table, router=SKEWED)
    short, long = measure(source, num_listed=4), measure(source)
    assert short.to_rows() == long.to_rows()
    assert len(long.to_rows()) == 3 * 15 + 2 * 36
    for layer in short.layers:
        lifts = [pair.lift for pair in layer.pairs]
        assert len(lifts) == 4
        assert lifts == sorted(lifts, reverse=True)


def test_the_real_trace_has_the_counts_of_plain_python(demo_trace: Path) -> None:
    rows = pq.read_table(demo_trace, filters=[("layer", "==", 3)]).column("expert").to_pylist()
    counts = Counter(frozenset(rows[at : at + 2]) for at in range(0, len(rows), 2))
    layer = measure(open_trace(demo_trace)).layers[3]
    for row in layer.matrix.iter_rows():
        assert row["count"] == counts[frozenset((row["expert_i"], row["expert_j"]))]
    assert sum(counts.values()) == layer.num_tokens
    assert layer.num_above > 0


@settings(max_examples=5)
@given(seed=st.integers(0, 1_000), order=st.permutations(range(6)))
def test_renaming_experts_renames_the_pairs(seed: int, order: list[int]) -> None:
    table = make_random_trace(LENGTHS, router=SKEWED, seed=seed)
    renamed = table.set_column(
        table.column_names.index("expert"),
        "expert",
        pa.array(np.array(order)[table.column("expert").to_numpy()].astype(np.int16)),
    )
    plain, other = (measure(open_rows(one, router=SKEWED)) for one in (table, renamed))
    for layer, named in zip(plain.layers, other.layers, strict=True):
        rows = {(row["expert_i"], row["expert_j"]): row for row in named.matrix.iter_rows()}
        for row in layer.matrix.iter_rows():
            i, j = sorted((order[row["expert_i"]], order[row["expert_j"]]))
            assert rows[i, j]["count"] == row["count"]
            for name in ("lift", "expected_lift", "lift_low", "p_value"):
                near = None if row[name] is None else pytest.approx(row[name], rel=1e-5)
                assert rows[i, j][name] == near
        assert {frozenset(group.experts) for group in named.expert_groups} == {
            frozenset(order[expert] for expert in group.experts) for group in layer.expert_groups
        }


@pytest.mark.parametrize("rows_per_window", [30, 100])
def test_the_order_of_prompts_and_the_size_of_windows_change_nothing(
    table: pa.Table, rows_per_window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(open_rows(table, router=SKEWED))
    monkeypatch.setattr(windows, "_ROWS_PER_WINDOW", rows_per_window)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 17)
    prompt = np.array(table.column("prompt_id").to_pylist())
    parts = [table.filter(pa.array(prompt == name)) for name in ("p3", "p0", "p4", "p2", "p1")]
    mixed = measure(open_rows(pa.concat_tables(parts), router=SKEWED))
    for one, other in zip(whole.to_rows(), mixed.to_rows(), strict=True):
        assert {name: pytest.approx(value) for name, value in one.items()} == other
    predictions = [
        [layer.next_layer.prediction for layer in result.layers if layer.next_layer]
        for result in (whole, mixed)
    ]
    assert predictions[0] == predictions[1]


def test_choosing_every_expert_makes_everything_even() -> None:
    router = Router(num_experts=4, top_k=4)
    result = measure(open_rows(make_random_trace(LENGTHS, router=router), router=router))
    for layer in result.layers:
        for row in layer.matrix.iter_rows():
            assert row["lift"] == row["expected_lift"] == 1.0
            assert not row["is_significant"]
        assert layer.baseline is not None
        assert layer.baseline.lift == layer.baseline.strongest_lift == 1.0
        assert layer.expert_groups == ()
        if layer.next_layer is not None:
            assert layer.next_layer.prediction is not None
            assert layer.next_layer.prediction.hit_rate == 1.0


def test_top_1_has_no_pairs_but_pairs_with_the_next_layer() -> None:
    router = Router(num_experts=5, top_k=1)
    table = make_random_trace(LENGTHS, router=router)
    result = measure(open_rows(table, router=router))
    for layer in result.layers:
        assert (layer.num_pairs, layer.pairs, layer.baseline) == (0, (), None)
    assert result.layers[0].next_layer is not None
    rows = list(result.layers[0].next_layer.matrix.iter_rows())
    assert sum(row["count"] for row in rows) == sum(LENGTHS)
    assert "Each decision chooses one expert, so no pairs occur in a layer." in result.notes


def test_counts_of_prompts_added_apart_are_those_of_all_at_once() -> None:
    rng = np.random.default_rng(1)
    experts = np.argsort(rng.random((300, 7)), axis=1)[:, :3]
    prompt = np.sort(rng.integers(0, 9, size=300))
    whole, parts = LayerPairs(7, 3, has_moments=True), LayerPairs(7, 3, has_moments=True)
    whole.add(experts, prompt)
    for one in rng.permutation(np.unique(prompt)):
        parts.add(experts[prompt == one], prompt[prompt == one])
    np.testing.assert_array_equal(whole.pairs, parts.pairs)
    assert whole.moments is not None
    assert parts.moments is not None
    for name, value in vars(whole.moments).items():
        np.testing.assert_allclose(value, getattr(parts.moments, name))
