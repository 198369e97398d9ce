"""Prediction of the next layer's experts, next to a regression on all tokens at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from moetool.analysis.coactivation.measure import measure_coactivation
from moetool.analysis.coactivation.prediction import Prefetch
from moetool.analysis.statistics import held_out
from moetool.analysis.statistics.held_out import HeldOutSample
from moetool.analysis.statistics.prediction import Prediction
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.coactivation.reference import select_layer
from tests.analysis.halves import choose_fitted
from tests.analysis.random_traces import Router, make_random_trace, open_rows

ROUTER = Router(num_experts=6, top_k=2, num_layers=2, popularity=(5, 4, 3, 2, 1, 1))
LENGTHS = tuple(range(5, 25))


def lean(table: pa.Table) -> pa.Table:
    """Return the trace with the first choice of layer 1 taken from layer 0 for half of the tokens."""
    experts = table.column("expert").to_numpy().copy()
    start = 0
    for length in LENGTHS:
        here = experts[start : start + 2 * length].reshape(-1, 2)
        there = experts[start + 2 * length : start + 4 * length].reshape(-1, 2)
        for token in range(0, length, 2):
            there[token] = (here[token] + 1) % 6
        experts[start + 2 * length : start + 4 * length] = there.ravel()
        start += 4 * length
    index = table.column_names.index("expert")
    return table.set_column(index, "expert", pa.array(experts))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return lean(make_random_trace(LENGTHS, router=ROUTER, seed=2))


def predict(table: pa.Table) -> tuple[Prediction, tuple[Prefetch, ...]]:
    result = measure_coactivation(DecisionReader(open_rows(table, router=ROUTER)))
    following = result.layers[0].next_layer
    assert following is not None
    assert following.prediction is not None
    assert (result.hit_rate, result.popularity) == (
        following.prediction.hit_rate,
        following.prediction.popularity,
    )
    return following.prediction, following.prefetch


def test_the_predictor_is_the_ridge_regression_of_the_other_half(table: pa.Table) -> None:
    found, prefetch = predict(table)
    pairs = list(zip(select_layer(table, 0), select_layer(table, 1), strict=True))
    half = choose_fitted(here.prompt_id for here, _ in pairs)
    fitted = [pair for pair in pairs if pair[0].prompt_id in half]
    scored = [pair for pair in pairs if pair[0].prompt_id not in half]
    inputs, wanted = np.zeros((len(fitted), 6)), np.zeros((len(fitted), 6))
    for row, (here, there) in enumerate(fitted):
        inputs[row, list(here.experts)] = 1
        wanted[row, list(there.experts)] = 1
    # A ridge of 1 is a token more for each expert, with nothing to predict.
    weights, *_ = np.linalg.lstsq(
        np.vstack([inputs, np.eye(6)]), np.vstack([wanted, np.zeros((6, 6))])
    )
    popularity = Counter(expert for _, there in fitted for expert in there.experts)
    popular = sorted(range(6), key=lambda expert: (-popularity[expert], expert))
    hits, popular_hits, chosen = Counter[int](), Counter[int](), 0
    for here, there in scored:
        scores = sum(weights[expert] for expert in here.experts)
        order = sorted(popular, key=lambda expert: -round(scores[expert], 9))
        chosen += len(there.experts)
        for size in (2, 4, 6):
            hits[size] += len({*order[:size]} & {*there.experts})
            popular_hits[size] += len({*popular[:size]} & {*there.experts})
    assert [each.num_fetched for each in prefetch] == [2, 4, 6]
    for each in prefetch:
        assert each.hit_rate == pytest.approx(hits[each.num_fetched] / chosen)
        assert each.popularity == pytest.approx(popular_hits[each.num_fetched] / chosen)
        assert each.baseline.hit_rate == each.num_fetched / 6
    assert found.hit_rate == prefetch[0].hit_rate > found.popularity + 0.1
    assert found.num_tokens_scored == len(scored)
    assert found.num_tokens_fitted == len(fitted)
    assert found.num_prompts_scored == len({here.prompt_id for here, _ in scored})
    assert found.gain_low is not None
    assert found.gain_high is not None
    assert found.gain_low < found.gain < found.gain_high
    assert found.gain_low > 0


def test_a_half_without_experts_in_the_next_layer_leaves_nothing_to_score() -> None:
    table = make_random_trace((5, 5, 5), router=ROUTER)
    half = choose_fitted(["p0", "p1", "p2"])
    kept = [
        layer == 0 or prompt in half
        for prompt, layer in zip(
            table.column("prompt_id").to_pylist(), table.column("layer").to_pylist(), strict=True
        )
    ]
    part = table.filter(pa.array(kept))
    result = measure_coactivation(DecisionReader(open_rows(part, router=ROUTER)))
    assert result.hit_rate is None
    assert result.layers[0].next_layer is not None
    assert result.layers[0].next_layer.prediction is None
    assert any("half of the prompts have none" in note for note in result.notes)


def test_a_prompt_alone_is_not_tested() -> None:
    table = make_random_trace((50,), router=ROUTER)
    result = measure_coactivation(DecisionReader(open_rows(table, router=ROUTER)))
    assert all(pair.p_value is None for layer in result.layers for pair in layer.pairs)
    assert not any(pair.is_significant for layer in result.layers for pair in layer.pairs)
    assert any("that takes two prompts" in note for note in result.notes)
    assert any("no pair is tested" in note for note in result.notes)


def test_the_sample_is_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MOST_TOKENS", 100)
    rng = np.random.default_rng(0)
    prompts = {int(rng.integers(2**63)): int(rng.integers(1, 20)) for _ in range(50)}
    kept = []
    for seed in range(3):
        sample = HeldOutSample()
        for name in np.random.default_rng(seed).permutation(np.array([*prompts])).tolist():
            if sample.wants(name):
                value = np.full((prompts[name], 1), name)
                sample.add(name, prompts[name], {0: (value, value)})
        kept.append(sample.collect(0))
        sizes = [prompts[name] for name in sorted(sample.prompts)]
        assert sum(sizes) >= 100 > sum(sizes[:-1])
        assert max(sample.prompts) < min(set(prompts) - set(sample.prompts))
    for other in kept[1:]:
        for one, two in zip(kept[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("num_prompts", [4, 5, 6])
def test_chance_hardly_ever_beats_popular_experts_in_a_few_prompts(num_prompts: int) -> None:
    router = Router(num_experts=6, top_k=2, num_layers=12, popularity=(3, 2, 1, 1, 1, 1))
    num_beyond = num_predicted = 0
    for seed in range(4):
        lengths = np.random.default_rng(seed).integers(8, 30, size=num_prompts).tolist()
        result = measure_coactivation(
            DecisionReader(
                open_rows(make_random_trace(lengths, router=router, seed=seed), router=router)
            )
        )
        num_beyond += result.verdict.num_layers_beyond_popularity
        num_predicted += result.verdict.num_predicted_layers
        assert not result.verdict.does_predict
    assert num_predicted == 4 * 11
    # One side of a 95 % interval: 2.5 % of the layers, within four standard errors.
    assert num_beyond <= num_predicted * 0.025 + 4 * (num_predicted * 0.025 * 0.975) ** 0.5
