"""A router without preferences lands on the baselines, and shows nothing that is significant."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.coactivation.baseline import find_pair_baseline
from moetool.analysis.coactivation.measure import measure_coactivation
from moetool.analysis.coactivation.result import Coactivation
from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.dropped_choices import drop_choices_by_rank
from tests.analysis.random_traces import Router, make_random_trace, open_rows

LENGTHS = [50] * 60


def simulate(router: Router, *, seed: int = 0) -> Coactivation:
    table = make_random_trace(LENGTHS, router=router, seed=seed)
    return measure_coactivation(DecisionReader(open_rows(table, router=router)))


@pytest.fixture(scope="module")
def even() -> Coactivation:
    return simulate(Router(num_experts=16, top_k=4, num_layers=4))


def test_pairs_have_the_lift_and_probability_of_the_baseline(even: Coactivation) -> None:
    for layer in even.layers:
        baseline = layer.baseline
        assert baseline is not None
        assert baseline.lift == pytest.approx(3 * 16 / (4 * 15))
        assert baseline.probability == pytest.approx(4 * 3 / (16 * 15))
        assert baseline.conditional == pytest.approx(3 / 15)
        assert baseline.conditional_in_olmoe_code == pytest.approx(2 * 3 / (4 * 15))
        count = layer.matrix.count
        # The counts of all pairs have a fixed sum, so their mean is exact; each has an error.
        assert count.mean() == pytest.approx(baseline.count)
        error = math.sqrt(baseline.count * (1 - baseline.probability))
        assert np.abs(count - baseline.count).max() < 5 * error
        loads = np.zeros(16)
        np.add.at(loads, layer.matrix.expert_i, count)
        np.add.at(loads, layer.matrix.expert_j, count)
        conditional = loads / 3 / layer.num_tokens
        np.testing.assert_allclose(conditional, 4 / 16, atol=5 * math.sqrt(0.25 * 0.75 / 3_000))


def test_hardly_anything_is_significant(even: Coactivation) -> None:
    # At a false discovery rate of 5 %, five layers of a hundred have a discovery.
    assert sum(layer.num_above + layer.num_below for layer in even.layers) <= 2
    values = np.concatenate([layer.matrix.p_value for layer in even.layers])
    # 480 uniform p-values: a share of 5 % within five standard errors, or fewer, as the intervals
    # are wide on purpose.
    assert (values <= 0.05).mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / len(values))
    assert (values <= 0.5).mean() == pytest.approx(0.5, abs=0.15)


def test_uneven_loads_alone_are_not_significant_either() -> None:
    """The router of largest entropy chooses a pair with odds that are products of weights."""
    weights = [1, 1, 2, 2, 3, 5, 8, 13]
    pairs = list(combinations(range(8), 2))
    odds = np.array([weights[i] * weights[j] for i, j in pairs], dtype=float)
    router = Router(num_experts=8, top_k=2, num_layers=6)
    table = make_random_trace(LENGTHS, router=router)
    rng = np.random.default_rng(5)
    drawn = rng.choice(np.array(pairs), size=table.num_rows // 2, p=odds / odds.sum())
    index = table.column_names.index("expert")
    experts = pa.array(drawn.ravel().astype(np.int16))
    result = measure_coactivation(
        DecisionReader(open_rows(table.set_column(index, "expert", experts), router=router))
    )
    values = np.concatenate([layer.matrix.p_value for layer in result.layers])
    lifts = np.concatenate([layer.matrix.lift for layer in result.layers])
    assert lifts.max() > 1.5 * lifts.min()
    assert len(values) == 6 * 28
    assert (values <= 0.05).mean() < 0.05 + 5 * math.sqrt(0.05 * 0.95 / len(values))
    assert sum(layer.num_above + layer.num_below for layer in result.layers) <= 2


def test_the_next_layer_is_not_predicted_better_than_at_random(even: Coactivation) -> None:
    for layer in even.layers[:-1]:
        assert layer.next_layer is not None
        prediction = layer.next_layer.prediction
        assert prediction is not None
        assert prediction.baseline.hit_rate == 4 / 16
        error = math.sqrt(0.25 * 0.75 / (4 * prediction.num_tokens_scored))
        assert prediction.hit_rate == pytest.approx(0.25, abs=6 * error)
        assert prediction.popularity == pytest.approx(0.25, abs=6 * error)
        assert prediction.gain_low is not None
        assert prediction.gain_high is not None
        assert prediction.gain_low < 6 * error
        assert [each.num_fetched for each in layer.next_layer.prefetch] == [4, 8, 16]
        last = layer.next_layer.prefetch[-1]
        assert last.hit_rate == last.popularity == 1.0
        counts = layer.next_layer.matrix.count
        expected = layer.next_layer.num_tokens / 16
        assert np.abs(counts - expected).max() < 6 * math.sqrt(expected)


def test_decisions_with_fewer_experts_land_on_the_baseline_of_as_few() -> None:
    router = Router(num_experts=8, top_k=3, num_layers=3)
    table = drop_choices_by_rank(make_random_trace(LENGTHS, router=router), (0.1, 0.3, 0.6))
    # A token that is dropped in one layer is dropped in the next.
    experts = table.column("expert").to_numpy().reshape(len(LENGTHS), 3, 50, 3).copy()
    experts[:, 1][experts[:, 0] < 0] = -1
    index = table.column_names.index("expert")
    table = table.set_column(index, "expert", pa.array(experts.ravel()))
    result = measure_coactivation(DecisionReader(open_rows(table, router=router)))
    for layer in result.layers:
        baseline, matrix = layer.baseline, layer.matrix
        assert baseline is not None
        # The sizes of decisions fix the sum over pairs.
        assert matrix.count.mean() == pytest.approx(baseline.count)
        assert matrix.probability.mean() == pytest.approx(baseline.probability)
        error = 1 / math.sqrt(baseline.count)
        assert np.abs(matrix.lift - baseline.lift).max() < 5 * error
        assert matrix.lift.mean() == pytest.approx(baseline.lift, abs=5 * error / math.sqrt(28))
        for given in (matrix.given_i, matrix.given_j):
            assert given.mean() == pytest.approx(baseline.conditional, abs=0.01)
        # A router of three experts for every token would have twice as many pairs.
        assert baseline.probability < 0.5 * 3 * 2 / (8 * 7)
        assert not layer.num_above + layer.num_below
        for group in layer.by_group:
            assert group.baseline is not None
            assert group.baseline.lift == pytest.approx(baseline.lift, abs=0.05)
    following = [layer.next_layer for layer in result.layers]
    for each, is_dropped_alike in zip(following[:2], (True, False), strict=True):
        assert each is not None
        expected, *others = set(each.matrix.expected_lift.tolist())
        assert others == []
        assert (expected > 1.1) == is_dropped_alike
        error = 1 / math.sqrt(each.matrix.count.mean())
        assert each.matrix.lift.mean() == pytest.approx(expected, abs=5 * error / 8)
    assert any(note.endswith("choices ran no expert.") for note in result.notes)


@pytest.mark.parametrize(
    ("num_experts", "sizes"),
    [
        (16, ((4, 2_000),)),
        (16, ((0, 200), (1, 300), (3, 500), (4, 1_500))),
        (8, ((7, 400),)),
        (8, ((2, 300),)),
        (8, ((0, 30), (1, 100), (2, 270))),
        (32, ((4, 500),)),
    ],
)
def test_the_strongest_pair_of_a_random_router_is_as_strong_as_stated(
    num_experts: int, sizes: Sizes
) -> None:
    size_of = np.array([size for size, number in sizes for _ in range(number)])
    top_k = int(size_of.max())
    baseline = find_pair_baseline(
        num_experts=num_experts,
        top_k=top_k,
        num_decisions=len(size_of),
        sizes=tuple((size, number) for size, number in sizes if size),
    )
    assert baseline is not None
    assert baseline.strongest_lift is not None
    rng = np.random.default_rng(7)
    strongest = []
    for _ in range(101):
        chosen = np.argsort(rng.random((len(size_of), num_experts)), axis=1)[:, :top_k]
        ones = np.zeros((len(size_of), num_experts))
        np.put_along_axis(ones, chosen, np.arange(top_k) < size_of[:, None], axis=1)
        pairs = ones.T @ ones
        lift = pairs * len(size_of) / np.outer(pairs.diagonal(), pairs.diagonal())
        strongest.append(lift[~np.eye(num_experts, dtype=bool)].max())
    # Half of the routers are stronger; of 101, the count has a standard error of 5.
    stronger = sum(lift > baseline.strongest_lift for lift in strongest)
    assert 51 - 5 * 5 <= stronger <= 51 + 5 * 5


def test_a_layer_that_copies_the_one_before_is_predicted_in_full() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=2)
    table = make_random_trace(LENGTHS, router=router)
    layer, expert = table.column("layer").to_numpy(), table.column("expert").to_numpy().copy()
    # Rows of a prompt: its tokens in layer 0, then in layer 1.
    for prompt in range(len(LENGTHS)):
        start = prompt * 200
        expert[start + 100 : start + 200] = (expert[start : start + 100] + 3) % 8
    assert (layer[100:200] == 1).all()
    index = table.column_names.index("expert")
    copied = table.set_column(index, "expert", pa.array(expert))
    result = measure_coactivation(DecisionReader(open_rows(copied, router=router)))
    following = result.layers[0].next_layer
    assert following is not None
    assert following.prediction is not None
    assert following.prediction.hit_rate == 1.0
    assert {pair.experts for pair in following.pairs[:8]} == {(i, (i + 3) % 8) for i in range(8)}
