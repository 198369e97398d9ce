"""Dependence of first choices on the token alone, next to plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.tokens import measure as measuring
from moetool.analysis.tokens.measure import is_sampled, measure_tokens
from moetool.analysis.tokens.result import TokenRouting
from moetool.analysis.tokens.sparse_counts import SparseCounts
from moetool.analysis.tokens.usual_share import count_times, expect_fixed, expect_usual_share
from moetool.errors import InputError
from moetool.trace.reading.reader import TraceSource, open_trace
from moetool.trace.windows import reader as windows
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.halves import choose_fitted
from tests.analysis.random_traces import Router, list_decisions, make_random_trace, open_rows

COLUMNS = ("token_id", "token", "weight")
ROUTER = Router(num_experts=4, top_k=2, num_layers=2, popularity=(4, 2, 1, 1))
LENGTHS = (40, 25, 9, 60, 31, 22)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return make_random_trace(LENGTHS, router=ROUTER, num_token_ids=30, seed=4)


def measure(source: TraceSource, *, min_count: int = 3) -> TokenRouting:
    return measure_tokens(DecisionReader(source, columns=COLUMNS), min_count=min_count)


def list_first_choices(table: pa.Table, layer: int) -> list[tuple[str, int, int]]:
    """Return prompt, token id and first choice of each decision."""
    return [
        (one.prompt_id, one.token_id, one.experts[0])
        for one in list_decisions(table)
        if one.layer == layer
    ]


def find_usual(chosen: Counter[int], popularity: Counter[int]) -> int:
    return max(chosen, key=lambda expert: (chosen[expert], popularity[expert], -expert))


def test_shares_are_those_of_plain_python(table: pa.Table) -> None:
    result = measure(open_rows(table, router=ROUTER))
    for layer in result.layers:
        choices = list_first_choices(table, layer.layer)
        popularity = Counter(first for _, _, first in choices)
        by_id: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for _, token_id, first in choices:
            by_id[token_id][first] += 1
        frequent = {one: chosen for one, chosen in by_id.items() if chosen.total() >= 3}
        assert layer.num_tokens == sum(LENGTHS)
        assert (layer.num_token_ids, layer.num_frequent) == (len(by_id), len(frequent))
        fixed = sum(len(chosen) == 1 for chosen in frequent.values())
        assert layer.fixed_share == pytest.approx(fixed / len(frequent))
        total = sum(chosen.total() for chosen in frequent.values())
        usual = sum(max(chosen.values()) for chosen in frequent.values())
        assert layer.usual_share == pytest.approx(usual / total)
        assert layer.baseline is not None
        assert layer.loads is not None
        sizes = [chosen.total() for chosen in frequent.values()]
        assert layer.baseline.fixed_share == pytest.approx(
            sum(4 * 0.25**size for size in sizes) / len(sizes)
        )
        assert layer.loads.fixed_share == pytest.approx(
            sum(
                (popularity[expert] / len(choices)) ** size for size in sizes for expert in range(4)
            )
            / len(sizes)
        )
        cells = [cell for cell in result.cells if cell.layer == layer.layer]
        assert [cell.token_id for cell in cells] == sorted(frequent)
        for cell in cells:
            chosen = frequent[cell.token_id]
            assert cell.token == f"t{cell.token_id}"
            assert cell.num_tokens == chosen.total()
            assert cell.num_experts_seen == len(chosen)
            assert cell.usual_expert == find_usual(chosen, popularity)
            assert cell.usual_share == pytest.approx(max(chosen.values()) / chosen.total())


def test_the_prediction_is_that_of_plain_python(table: pa.Table) -> None:
    for layer in measure(open_rows(table, router=ROUTER)).layers:
        choices = list_first_choices(table, layer.layer)
        half = choose_fitted(prompt for prompt, _, _ in choices)
        fitted = [one for one in choices if one[0] in half]
        scored = [one for one in choices if one[0] not in half]
        popularity = Counter(first for _, _, first in fitted)
        popular = min(popularity, key=lambda expert: (-popularity[expert], expert))
        by_id: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for _, token_id, first in fitted:
            by_id[token_id][first] += 1
        predicted = {one: find_usual(chosen, popularity) for one, chosen in by_id.items()}
        hits = sum(predicted.get(token_id, popular) == first for _, token_id, first in scored)
        prediction = layer.prediction
        assert prediction is not None
        assert prediction.hit_rate == pytest.approx(hits / len(scored))
        assert prediction.popularity == pytest.approx(
            sum(first == popular for _, _, first in scored) / len(scored)
        )
        assert prediction.baseline.hit_rate == 1 / 4
        assert prediction.num_tokens_scored == len(scored)
        assert prediction.num_tokens_fitted == len(fitted)
        assert prediction.num_prompts_scored == len({prompt for prompt, _, _ in scored})
        assert prediction.gain_low is not None
        assert prediction.gain_high is not None
        assert prediction.gain_low < prediction.gain < prediction.gain_high


@pytest.mark.parametrize("chances", [(0, 0), (0.3, 0.6)], ids=str)
def test_a_random_router_lands_on_the_baselines(chances: tuple[float, float]) -> None:
    table = drop_choices_by_rank(
        make_random_trace([100] * 40, router=ROUTER, num_token_ids=600, seed=1), chances
    )
    for layer in measure(open_rows(table, router=ROUTER), min_count=4).layers:
        assert layer.loads is not None
        assert layer.fixed_share is not None
        assert layer.usual_share is not None
        chance = layer.loads.fixed_share
        assert layer.fixed_share == pytest.approx(
            chance, abs=5 * math.sqrt(chance / layer.num_frequent)
        )
        # Each of 4,000 draws adds at most one to the occurrences of the usual choice.
        assert layer.usual_share == pytest.approx(layer.loads.usual_share, abs=5 * 0.5 / 4_000**0.5)
        prediction = layer.prediction
        assert prediction is not None
        error = 0.5 / math.sqrt(prediction.num_tokens_scored)
        assert prediction.hit_rate < prediction.popularity + 5 * error
        assert not prediction.is_gain_certain


def test_an_even_router_lands_on_the_uniform_baseline() -> None:
    router = Router(num_experts=4, top_k=2, num_layers=2)
    table = drop_choices_by_rank(
        make_random_trace([100] * 40, router=router, num_token_ids=600, seed=2), (0.3, 0.6)
    )
    for layer in measure(open_rows(table, router=router), min_count=4).layers:
        assert layer.baseline is not None
        chance = layer.baseline.fixed_share
        assert layer.fixed_share == pytest.approx(
            chance, abs=5 * math.sqrt(chance / layer.num_frequent)
        )
        error = 5 * 0.5 / 2_000**0.5
        assert layer.usual_share == pytest.approx(layer.baseline.usual_share, abs=error)


def test_a_router_that_looks_at_the_token_alone_never_changes(table: pa.Table) -> None:
    token_id = table.column("token_id").to_numpy()
    rank = table.column("rank").to_numpy()
    index = table.column_names.index("expert")
    fixed = table.set_column(index, "expert", pa.array(((token_id + rank) % 4).astype(np.int16)))
    for layer in measure(open_rows(fixed, router=ROUTER)).layers:
        assert layer.fixed_share == layer.usual_share == 1.0
        assert layer.prediction is not None
        assert layer.prediction.hit_rate > 0.9


@pytest.mark.parametrize("rows_per_window", [30, 100])
def test_the_order_of_prompts_and_the_size_of_windows_change_nothing(
    table: pa.Table, rows_per_window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(open_rows(table, router=ROUTER)).to_dict()
    monkeypatch.setattr(windows, "_ROWS_PER_WINDOW", rows_per_window)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 17)
    prompt = np.array(table.column("prompt_id").to_pylist())
    parts = [table.filter(pa.array(prompt == f"p{one}")) for one in (3, 5, 0, 4, 2, 1)]
    mixed = measure(open_rows(pa.concat_tables(parts), router=ROUTER))
    assert mixed.to_dict() == whole


def test_renaming_experts_renames_the_usual_ones(table: pa.Table) -> None:
    order = np.array([2, 0, 3, 1], dtype=np.int16)
    index = table.column_names.index("expert")
    named = table.set_column(index, "expert", pa.array(order[table.column("expert").to_numpy()]))
    plain, other = (measure(open_rows(one, router=ROUTER)) for one in (table, named))
    for one, two in zip(plain.cells, other.cells, strict=True):
        assert (one.num_tokens, one.num_experts_seen) == (two.num_tokens, two.num_experts_seen)
        assert one.usual_share == two.usual_share
        if one.usual_share > 0.5:
            assert order[one.usual_expert] == two.usual_expert
    for layer, renamed in zip(plain.layers, other.layers, strict=True):
        assert layer.fixed_share == renamed.fixed_share
        assert layer.usual_share == renamed.usual_share


def test_without_ranks_the_largest_weight_is_the_first_choice(table: pa.Table) -> None:
    rng = np.random.default_rng(0)
    mixed = table.take(pa.array(rng.permutation(table.num_rows))).drop_columns(["rank"])
    found, wanted = (measure(open_rows(one, router=ROUTER)) for one in (mixed, table))
    assert [layer.usual_share for layer in found.layers] == [
        layer.usual_share for layer in wanted.layers
    ]


def test_without_ranks_and_weights_first_choices_are_unknown(table: pa.Table) -> None:
    bare = table.drop_columns(["rank", "weight"])
    result = measure(open_rows(bare, router=ROUTER))
    for layer in result.layers:
        assert (layer.fixed_share, layer.usual_share, layer.prediction) == (None, None, None)
    assert (result.tokens, result.cells) == ((), ())
    assert result.notes == (
        "The trace has neither ranks nor weights: what depends on the first choice is unknown.",
    )


def test_a_trace_without_token_ids_is_refused(table: pa.Table) -> None:
    with pytest.raises(InputError, match="no column 'token_id'"):
        measure(open_rows(table.drop_columns(["token_id"]), router=ROUTER))


def test_ids_that_do_not_fit_are_sampled(table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(open_rows(table, router=ROUTER))
    monkeypatch.setattr(measuring, "_MOST_CELLS", 150)
    part = measure(open_rows(table, router=ROUTER))
    halvings = round(-math.log2(part.id_sample))
    assert halvings >= 1
    kept = {cell.token_id for cell in part.cells}
    assert kept == {
        cell.token_id
        for cell in whole.cells
        if is_sampled(np.array([cell.token_id]), halvings).all()
    }
    assert set(part.cells) <= {
        *(cell for cell in whole.cells if cell.token_id in kept),
        *part.cells,
    }
    for cell in part.cells:
        (same,) = (
            one for one in whole.cells if (one.layer, one.token_id) == (cell.layer, cell.token_id)
        )
        assert (same.num_tokens, same.usual_share) == (cell.num_tokens, cell.usual_share)
    assert f"1 of {2**halvings} was counted" in part.notes[-1]


def test_half_of_the_ids_are_sampled() -> None:
    ids = np.arange(100_000)
    for halvings in (0, 1, 4):
        share = is_sampled(ids, halvings).mean()
        assert share == pytest.approx(0.5**halvings, abs=5 * 0.5 / 100_000**0.5)
    assert (is_sampled(ids, 3) <= is_sampled(ids, 2)).all()


def test_the_expected_shares_are_those_of_draws() -> None:
    chance = np.array([0.5, 0.3, 0.1, 0.1])
    rng = np.random.default_rng(9)
    numbers = np.repeat([2, 5, 40, 2_000], 3_000)
    draws = np.stack([rng.multinomial(number, chance) for number in numbers])
    most = draws.max(axis=1) / numbers
    for found, wanted in (
        (expect_usual_share(numbers, chance), most),
        (expect_fixed(numbers, chance), most == 1),
    ):
        for number in (2, 5, 40, 2_000):
            mine = numbers == number
            # The usual share is itself a mean of simulations.
            error = wanted[mine].std() * (1 / 3_000 + 1 / count_times(number)) ** 0.5
            assert found[mine][0] == pytest.approx(wanted[mine].mean(), abs=5 * error + 1e-6)


def test_many_numbers_of_draws_are_interpolated() -> None:
    numbers = np.arange(2, 400)
    found = expect_usual_share(numbers, np.full(8, 1 / 8))
    exact = np.array([expect_usual_share(np.array([one]), np.full(8, 1 / 8))[0] for one in numbers])
    # Both are means of simulations, whose standard deviation is below that of a single choice.
    times = np.array([count_times(int(number)) for number in numbers])
    error = 0.5 / np.sqrt(numbers) * np.sqrt(2 / times)
    assert (np.abs(found - exact) < 5 * error).all()


def test_sparse_counts_are_those_of_a_counter() -> None:
    rng = np.random.default_rng(0)
    counts, wanted = SparseCounts(), Counter[int]()
    for size in (1, 50, 3, 400, 0, 20):
        keys = rng.integers(-5, 2**40, size=size) // 2**33
        counts.add(keys)
        wanted.update(keys.tolist())
        assert counts.num_cells >= len(wanted)
    keys, numbers = counts.collect()
    assert dict(zip(keys.tolist(), numbers.tolist(), strict=True)) == wanted
    assert keys.tolist() == sorted(wanted)
    counts.keep(keys % 2 == 0)
    assert counts.collect()[0].tolist() == [key for key in sorted(wanted) if key % 2 == 0]


def test_the_demonstration_model_routes_by_more_than_the_token(demo_trace: Path) -> None:
    result = measure(open_trace(demo_trace), min_count=10)
    first, *others = (layer.prediction for layer in result.layers)
    assert first is not None
    for prediction in others:
        assert prediction is not None
        assert prediction.popularity < prediction.hit_rate < first.hit_rate
