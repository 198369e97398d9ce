"""Vocabulary specialization and characteristic tokens: by loops, and of simulated routers."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.specialization.by_token import counting
from moetool.analysis.specialization.by_token.measure import measure_token_specialization
from moetool.analysis.specialization.by_token.result import TokenSpecialization
from moetool.analysis.specialization.from_trace import SpecializationOptions
from moetool.errors import InputError
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.random_traces import (
    Decision,
    Router,
    list_decisions,
    make_random_trace,
    open_rows,
)

ROUTER = Router(num_experts=6, top_k=2, num_layers=2, popularity=(4, 2, 1, 1, 1, 1))
MIN_COUNT = 3


def measure(
    table: pa.Table, *, router: Router = ROUTER, min_count: int = MIN_COUNT
) -> TokenSpecialization:
    return measure_token_specialization(
        open_rows(table, router=router), SpecializationOptions(), min_count=min_count
    )


def usual_by_loops(decisions: list[Decision], *, ranks: slice) -> float:
    """Return the mean share of the usual expert, one token id at a time."""
    uses: dict[int, Counter[int]] = defaultdict(Counter)
    number: Counter[int] = Counter()
    for each in decisions:
        number[each.token_id] += 1
        uses[each.token_id].update(each.experts[ranks])
    return float(
        np.mean(
            [
                max(uses[token].values()) / number[token]
                for token in number
                if number[token] >= MIN_COUNT
            ]
        )
    )


def test_figures_are_those_of_a_reading_token_by_token() -> None:
    table = make_random_trace((9, 14, 7, 11), router=ROUTER, seed=5)
    decisions = list_decisions(table)
    result = measure(table)
    for layer in result.layers:
        mine = [each for each in decisions if each.layer == layer.layer]
        number = Counter(each.token_id for each in mine)
        enough = [token for token in number if number[token] >= MIN_COUNT]
        assert layer.num_tokens == len(mine)
        assert layer.num_token_ids == len(enough)
        assert layer.covered_share == pytest.approx(sum(number[token] for token in enough) / 41)
        for found, ranks in (
            (layer.vocabulary_specialization, slice(None)),
            (layer.first_vocabulary_specialization, slice(0, 1)),
        ):
            assert found == pytest.approx(usual_by_loops(mine, ranks=ranks))


def test_characteristic_tokens_are_counted_and_ordered_by_their_shrunken_lift() -> None:
    table = make_random_trace((19, 24, 17, 21), router=ROUTER, seed=6)
    decisions = list_decisions(table)
    result = measure(table)
    assert result.tokens
    lifts: dict[tuple[int, int], list[float]] = defaultdict(list)
    for token in result.tokens:
        mine = [each for each in decisions if each.layer == token.layer]
        uses = [each for each in mine if each.token_id == token.token_id]
        chosen = [each for each in uses if token.expert in each.experts]
        share_of_all = np.mean([token.expert in each.experts for each in mine])
        assert token.token == f"t{token.token_id}"
        assert (token.occurrences, token.assignments) == (len(uses), len(chosen))
        assert token.prompts == len({each.prompt_id for each in uses}) >= 2
        assert token.expert_share == pytest.approx(share_of_all)
        assert token.lift == pytest.approx(len(chosen) / len(uses) / share_of_all)
        shrunken = (len(chosen) + 10 * share_of_all) / (len(uses) + 10) / share_of_all
        assert token.shrunken_lift == pytest.approx(shrunken)
        lifts[token.layer, token.expert].append(token.shrunken_lift)
    for values in lifts.values():
        assert values == sorted(values, reverse=True)
        assert values[-1] > 1
        assert len(values) <= 5


@pytest.mark.parametrize("chances", [(0, 0), (0.1, 0.6)], ids=str)
@pytest.mark.parametrize("popularity", [(), ROUTER.popularity], ids=["even", "skewed"])
def test_a_router_that_ignores_the_token_lands_on_its_baseline(
    popularity: tuple[float, ...], chances: tuple[float, float]
) -> None:
    router = Router(num_experts=6, top_k=2, num_layers=6, popularity=popularity)
    table = drop_choices_by_rank(
        make_random_trace((500, 600, 700), router=router, num_token_ids=60), chances
    )
    layers = measure(table, router=router, min_count=10).layers
    for name in ("vocabulary_specialization", "first_vocabulary_specialization"):
        difference = [getattr(layer, name) - getattr(layer.loads, name) for layer in layers]
        # The baseline is a mean of 200 runs, whose spread at 30 occurrences is about 0.05.
        error = np.sqrt(np.var(difference, ddof=1) / len(layers) + 0.05**2 / 200)
        assert abs(np.mean(difference)) < 4 * error
        even = [getattr(layer, name) - getattr(layer.baseline, name) for layer in layers]
        assert (abs(np.mean(even)) < 4 * error) == (not popularity)
    # The best tokens of its experts are those of chance, and the list shows that.
    result = measure(table, router=router, min_count=10)
    best = {(each.layer, each.expert): each for each in reversed(result.tokens)}.values()
    ratio = [each.shrunken_lift / each.loads.shrunken_lift for each in best]
    assert np.mean(ratio) == pytest.approx(1, abs=4 * np.std(ratio, ddof=1) / np.sqrt(len(ratio)))
    # About half are above the mean of the largest by chance.
    assert 0.2 < np.mean([each.is_beyond_chance for each in best]) < 0.8
    assert [each.is_beyond_chance for each in best] == [each > 1 for each in ratio]


def test_a_router_decided_by_the_token_id_has_the_usual_expert_always() -> None:
    table = make_random_trace((50, 60), router=ROUTER, num_token_ids=9)
    token_id, rank = (table.column(name).to_numpy() for name in ("token_id", "rank"))
    expert = pa.array(((token_id + 3 * rank) % 6).astype(np.int16))
    table = table.set_column(table.column_names.index("expert"), "expert", expert)
    assert all(each.is_beyond_chance for each in measure(table).tokens if each.share == 1)
    for layer in measure(table).layers:
        assert layer.vocabulary_specialization == layer.first_vocabulary_specialization == 1
        assert layer.baseline is not None
        assert layer.baseline.vocabulary_specialization < 0.9


def test_every_expert_for_every_token_is_everyones_usual_one() -> None:
    router = Router(num_experts=3, top_k=3, num_layers=1)
    result = measure(make_random_trace((30, 40), router=router), router=router)
    (layer,) = result.layers
    assert layer.baseline is not None
    assert layer.vocabulary_specialization == layer.baseline.vocabulary_specialization == 1
    assert result.tokens == ()


@settings(max_examples=15)
@given(st.permutations(range(6)))
def test_the_numbering_of_experts_permutes_the_list(order: list[int]) -> None:
    table = make_random_trace((19, 24), router=ROUTER, seed=7)
    renamed = np.array(order, dtype=np.int16)[table.column("expert").to_numpy()]
    other = table.set_column(
        table.column_names.index("expert"), "expert", pa.array(renamed.astype(np.int16))
    )
    one, another = measure(table), measure(other)
    for mine, theirs in zip(one.layers, another.layers, strict=True):
        assert mine.vocabulary_specialization == theirs.vocabulary_specialization
        assert mine.loads == theirs.loads
    listed = {
        (each.layer, order[each.expert], each.token_id, each.assignments) for each in one.tokens
    }
    assert listed == {
        (each.layer, each.expert, each.token_id, each.assignments) for each in another.tokens
    }


def test_the_order_of_prompts_changes_no_figure() -> None:
    table = make_random_trace((19, 24, 30), router=ROUTER, seed=8)
    prompts = np.array(table.column("prompt_id").to_pylist())
    parts = [table.filter(pa.array(prompts == name)) for name in ("p2", "p0", "p1")]
    one, other = measure(table), measure(pa.concat_tables(parts))
    assert (one.layers, one.tokens) == (other.layers, other.tokens)


def test_ids_that_are_too_many_for_memory_leave_the_most_frequent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = make_random_trace((60, 70), router=ROUTER, num_token_ids=30)
    everything = measure(table)
    monkeypatch.setattr(counting, "_MOST_CELLS", 12 * 10)
    few = measure(table)
    assert few.min_count > everything.min_count
    assert 0 < few.layers[0].num_token_ids <= 10
    assert any("instead of 3" in note for note in few.notes)


def test_no_frequent_id_leaves_everything_unknown() -> None:
    result = measure(make_random_trace((5, 3)), router=Router(), min_count=100)
    for layer in result.layers:
        assert (layer.num_token_ids, layer.vocabulary_specialization) == (0, None)
        assert (layer.baseline, layer.loads, layer.covered_share) == (None, None, 0)
    assert result.tokens == ()
    assert any("No token id has 100 occurrences" in note for note in result.notes)


def test_a_trace_without_ranks_or_pieces_says_what_it_can() -> None:
    table = make_random_trace((30, 40), router=ROUTER)
    full = measure(table)
    bare = measure(table.drop_columns(["rank", "token"]))
    for mine, theirs in zip(full.layers, bare.layers, strict=True):
        assert theirs.vocabulary_specialization == mine.vocabulary_specialization
        assert theirs.first_vocabulary_specialization is None
    unnamed = tuple(replace(each, token=None) for each in full.tokens)
    assert bare.tokens == unnamed


def test_a_trace_without_token_ids_is_refused() -> None:
    table = make_random_trace().drop_columns(["token_id"])
    with pytest.raises(InputError, match="has no column 'token_id'"):
        measure(table, router=Router())
