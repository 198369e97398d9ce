"""The balance of traces of simulated routers, against counting decision by decision."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.balance.layer_result import LayerBalance, PartBalance
from moetool.analysis.balance.measure import COLUMNS, measure_balance, measure_balance_of_counts
from moetool.analysis.balance.result import FIGURES, Balance
from moetool.errors import InputError
from moetool.trace.facts import describe_trace
from moetool.trace.reading.counts import count_experts
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.balance.test_evenness import measure_by_loops
from tests.analysis.random_traces import (
    Decision,
    Router,
    list_decisions,
    make_random_trace,
    open_rows,
)
from tests.analysis.short_decisions import shorten_decisions

SKEWED = Router(num_experts=6, top_k=2, num_layers=2, popularity=(5, 3, 1, 1, 1, 0.02))
LENGTHS = (9, 4, 13, 1, 6, 20)


def measure(
    table: pa.Table,
    *,
    router: Router = SKEWED,
    by: str = "domain",
    tokens_per_batch: int | None = None,
) -> Balance:
    reader = DecisionReader(open_rows(table, router=router), by=by, columns=COLUMNS)
    return measure_balance(reader, by=by, tokens_per_batch=tokens_per_batch)


def count(decisions: list[Decision], num_experts: int) -> list[int]:
    load = [0] * num_experts
    for decision in decisions:
        for expert in decision.experts:
            load[expert] += 1
    return load


def group_by_layer(table: pa.Table) -> dict[int, list[Decision]]:
    layers: dict[int, list[Decision]] = defaultdict(list)
    for decision in list_decisions(table):
        layers[decision.layer].append(decision)
    return layers


def test_every_layer_group_and_phase_is_counted_as_by_hand() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED, num_prompt_tokens=5)
    result = measure(table)
    by_hand = group_by_layer(table)
    assert [layer.layer for layer in result.layers] == sorted(by_hand)
    for layer in result.layers:
        decisions = by_hand[layer.layer]
        parts: list[tuple[object, list[Decision]]] = [(layer, decisions)]
        parts += [
            (part, [each for each in decisions if each.domain == part.name])
            for part in layer.groups
        ]
        parts += [
            (part, [each for each in decisions if each.phase == part.name]) for part in layer.phases
        ]
        assert len(parts) == 5
        for figures, mine in parts:
            load = count(mine, 6)
            assert list(figures.load) == load  # type: ignore[attr-defined]
            assert figures.num_tokens == len(mine)  # type: ignore[attr-defined]
            for name, value in measure_by_loops(load).items():
                assert getattr(figures, name) == pytest.approx(value), name
            dead = [expert for expert, number in enumerate(load) if not number]
            assert list(figures.dead) == dead  # type: ignore[attr-defined]


def test_prompts_are_counted_as_by_hand() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    for layer, decisions in zip(measure(table).layers, group_by_layer(table).values(), strict=True):
        used: dict[str, set[int]] = defaultdict(set)
        for decision in decisions:
            used[decision.prompt_id].update(decision.experts)
        assert layer.num_prompts == len(LENGTHS)
        assert list(layer.prompts_choosing or ()) == [
            sum(expert in mine for mine in used.values()) for expert in range(6)
        ]
        assert layer.unused_per_prompt == pytest.approx(
            np.mean([6 - len(mine) for mine in used.values()])
        )
        expected = np.mean([6 * (1 - 2 / 6) ** length for length in LENGTHS])
        assert layer.baseline.unused_per_prompt == pytest.approx(expected)


def test_the_prompt_cv_is_that_of_the_spread_between_prompts() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    layer, decisions = measure(table).layers[0], group_by_layer(table)[0]
    total = 2 * sum(LENGTHS)
    load = count(decisions, 6)
    variance = 0.0
    squares = sum(length**2 for length in LENGTHS) / sum(LENGTHS) ** 2
    for expert in range(6):
        for prompt, length in enumerate(LENGTHS):
            mine = count([each for each in decisions if each.prompt_id == f"p{prompt}"], 6)
            h = length / sum(LENGTHS)
            residual = (mine[expert] - load[expert] * h) / total
            variance += residual**2 / (1 - 2 * h + squares)
    assert layer.prompt_cv == pytest.approx((6 * variance) ** 0.5)


def test_an_even_router_that_routes_whole_prompts_alike_is_not_called_uneven() -> None:
    """Its load is far from a random router's, but only because of the prompts that were drawn."""
    rng = np.random.default_rng(0)
    router = Router(num_experts=8, top_k=2, num_layers=1)
    table = make_random_trace([30] * 40, router=router)
    favourites = np.argsort(rng.random((40, 8)), axis=1)[:, :2].ravel()
    rows = np.repeat(favourites.reshape(40, 2), 30, axis=0).ravel().astype(np.int16)
    table = table.set_column(table.column_names.index("expert"), "expert", pa.array(rows))
    (layer,) = measure(table, router=router).layers
    assert layer.cv is not None
    assert layer.prompt_cv is not None
    assert layer.cv > 4 * (layer.baseline.cv or 0)
    assert layer.prompt_cv == pytest.approx(layer.cv, rel=0.5)
    assert not layer.is_uneven


def test_a_random_router_is_not_uneven_and_a_skewed_one_is() -> None:
    lengths = [40] * 30
    even = measure(make_random_trace(lengths, router=Router()), router=Router())
    skewed = measure(make_random_trace(lengths, router=SKEWED))
    assert [layer.is_uneven for layer in even.layers] == [False] * 3
    assert [layer.hot for layer in even.layers] == [()] * 3
    assert [layer.is_uneven for layer in skewed.layers] == [True] * 2
    assert [[hot.expert for hot in layer.hot] for layer in skewed.layers] == [[0, 1]] * 2


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)))
def test_permuting_experts_permutes_the_tables(order: list[int]) -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    index = table.column_names.index("expert")
    renamed = np.array(order, dtype=np.int16)[table.column("expert").to_numpy()]
    one = measure(table)
    other = measure(table.set_column(index, "expert", pa.array(renamed)))
    for before, after in zip(one.layers, other.layers, strict=True):
        assert [after.load[order[expert]] for expert in range(6)] == list(before.load)
        for name in (*FIGURES, "max_violation_batch", "prompt_cv", "unused_per_prompt"):
            assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert [share.dropped_share for share in one.capacity] == pytest.approx(
        [share.dropped_share for share in other.capacity]
    )


def list_figures(layer: LayerBalance) -> list[float]:
    names = (*FIGURES, "max_violation_batch", "unused_per_prompt", "prompt_cv")
    figures = [getattr(layer, name) for name in names]
    return [*figures, *layer.load, *(layer.prompts_choosing or ())]


def test_the_order_of_rows_does_not_matter_to_batches_of_prompts() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    one, other = measure(table), measure(shuffled)
    for before, after in zip(one.layers, other.layers, strict=True):
        assert list_figures(before) == pytest.approx(list_figures(after))
    assert [share.dropped_share for share in one.capacity] == [
        share.dropped_share for share in other.capacity
    ]
    assert one.capacity[0].by_position == other.capacity[0].by_position


@pytest.mark.parametrize("tokens_per_batch", [None, 7])
def test_small_windows_give_the_same(
    tokens_per_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_random_trace(LENGTHS, router=SKEWED, num_prompt_tokens=5)
    whole = measure(table, tokens_per_batch=tokens_per_batch)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 30)
    monkeypatch.setattr("moetool.trace.windows.reader._ROWS_PER_WINDOW", 40)
    parts = measure(table, tokens_per_batch=tokens_per_batch)
    for before, after in zip(whole.layers, parts.layers, strict=True):
        assert list_figures(before) == pytest.approx(list_figures(after))
        assert (before.groups, before.phases) == (after.groups, after.phases)
    assert whole.capacity == parts.capacity


def test_parts_in_another_order_give_the_same() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    prompt = np.array(table.column("prompt_id").to_pylist())
    backwards = pa.concat_tables(
        [table.filter(pa.array(prompt == f"p{number}")) for number in (3, 5, 0, 1, 4, 2)]
    )
    one, other = measure(table), measure(backwards)
    for before, after in zip(one.layers, other.layers, strict=True):
        assert list_figures(before) == pytest.approx(list_figures(after))
    assert [share.by_position for share in one.capacity] == [
        share.by_position for share in other.capacity
    ]


def test_choosing_every_expert_is_even_and_drops_nothing() -> None:
    router = Router(num_experts=4, top_k=4, num_layers=1)
    result = measure(make_random_trace(LENGTHS, router=router), router=router)
    (layer,) = result.layers
    for figures in (layer, layer.baseline, *layer.groups):
        assert (figures.cv, figures.gini, figures.max_violation) == pytest.approx((0, 0, 0))
        assert figures.num_dead == 0
    assert [share.dropped_share for share in result.capacity] == [0] * 8
    assert [share.baseline.dropped_share for share in result.capacity] == [0] * 8


def test_capacity_is_over_all_layers_and_batches() -> None:
    table = make_random_trace([50] * 4, router=SKEWED)
    result = measure(table, tokens_per_batch=40)
    dropped = total = 0
    for decisions in group_by_layer(table).values():
        for start in range(0, 200, 40):
            load = count(decisions[start : start + 40], 6)
            dropped += sum(max(0, number - 14) for number in load)  # ceil(40 * 2 / 6)
            total += sum(load)
    first = result.capacity[0]
    assert (first.factor, first.policy, first.tokens_per_batch) == (1.0, "position", 40)
    assert first.dropped_share == pytest.approx(dropped / total)
    assert result.batches == "tokens"


@pytest.mark.parametrize("share_short", [0.0, 0.6])
def test_a_simulated_random_router_lands_on_every_baseline(share_short: float) -> None:
    router = Router(num_experts=8, top_k=2, num_layers=24)
    table = make_random_trace([12] * 60, router=router, num_prompt_tokens=8)
    table = shorten_decisions(table, share=share_short)
    result = measure(table, router=router)
    parts: list[list[LayerBalance | PartBalance]] = [list(result.layers)]
    parts += [[layer.groups[index] for layer in result.layers] for index in range(2)]
    parts += [[layer.phases[index] for layer in result.layers] for index in range(2)]
    for index, mine in enumerate(parts):
        of_layers = () if index else ("max_violation_batch", "unused_per_prompt", "mean_squared")
        for name in (*FIGURES, *of_layers):
            seen = np.array([getattr(each, name) for each in mine])
            expected = np.mean([getattr(each.baseline, name) for each in mine])
            error = seen.std(ddof=1) / len(seen) ** 0.5
            assert abs(seen.mean() - expected) < 4.5 * error + 0.02 * abs(expected) + 1e-6, name
    for number in range(4):
        dropped = np.array([layer.dropped[number].share for layer in result.layers])
        expected = np.mean([layer.dropped[number].baseline or 0 for layer in result.layers])
        error = dropped.std(ddof=1) / len(dropped) ** 0.5
        assert abs(dropped.mean() - expected) < 4.5 * error + 1e-4
        assert result.capacity[number].baseline.dropped_share == pytest.approx(expected, rel=0.01)
    assert [note for note in result.notes if "ran no expert" in note] == (
        [f"{round(share_short * 720) * 24:,} of {720 * 48:,} choices ran no expert."]
        if share_short
        else []
    )
    assert sum(layer.is_uneven or False for layer in result.layers) <= 1


def test_an_even_load_of_short_decisions_has_the_losses_of_the_baseline() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=1)
    table = shorten_decisions(make_random_trace([40] * 10, router=router), share=0.6)
    (layer,) = measure(table, router=router).layers
    assert layer.baseline.aux_loss == pytest.approx(1.4 / 2)
    assert layer.num_tokens == 400
    assert layer.baseline.load == pytest.approx(400 * 1.4 / 8)


def test_without_weights_who_is_dropped_by_probability_is_unknown() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED).drop_columns(["weight"])
    result = measure(table)
    by_probability = [share for share in result.capacity if share.policy == "probability"]
    assert [share.by_position for share in by_probability] == [None] * 4
    assert [share.dropped_share for share in by_probability] == [
        share.dropped_share for share in result.capacity[:4]
    ]
    assert any("no weights" in note for note in result.notes)


def test_counts_alone_give_the_same_figures_of_load() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    counts = count_experts(open_rows(table, router=SKEWED), by="domain")
    facts = describe_trace(None, path=None, num_prompts=0, num_tokens=53, num_assignments=212)
    whole, part = measure(table), measure_balance_of_counts(counts, facts=facts)
    for one, other in zip(whole.layers, part.layers, strict=True):
        for name in (*FIGURES, "load", "dead", "mean_squared"):
            assert getattr(one, name) == getattr(other, name), name
        for name in FIGURES:
            assert getattr(one.baseline, name) == pytest.approx(getattr(other.baseline, name))
    assert part.capacity == ()
    assert part.batches is None


def test_too_many_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moetool.analysis.balance.measure._MOST_VALUES", 790)
    table = make_random_trace(LENGTHS, router=SKEWED)
    # Six groups of two layers, each with six loads and sixty other values.
    with pytest.raises(InputError, match="6 groups of 'prompt_id' and 2 layers of 12 experts"):
        measure(table, by="prompt_id")
    monkeypatch.setattr("moetool.analysis.balance.measure._MOST_VALUES", 792)
    assert len(measure(table, by="prompt_id").layers[0].groups) == 6
