"""The data of a page are those of the results, and its bytes those of the sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moetool import (
    compare_traces,
    measure_balance,
    measure_coactivation,
    measure_specialization,
    place_experts,
    render_report,
    sample_prompts,
    simulate_caches,
)
from moetool.report.page.payload.values.numbers import shorten
from tests.analysis.dropped_choices import drop_choices
from tests.analysis.random_traces import Router, make_random_trace
from tests.report.page.reading_pages import read_decisions, read_payload

ROUTER = Router(num_experts=8, top_k=2, num_layers=2, popularity=(4, 3, 2, 2, 1, 1, 1, 1))


def near(value: object) -> Any:
    """Return what a number of the page equals: 5 digits of the result's."""
    if value is None or not math.isfinite(float(str(value))):
        return None
    return pytest.approx(float(str(value)), rel=6e-5, abs=1e-300)


@pytest.fixture(scope="module", params=["random", "demo"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "demo":
        found: Path = request.getfixturevalue("short_demo_trace")
        return found
    path = tmp_path_factory.mktemp("payload") / "trace.csv"
    table = make_random_trace((9, 6, 12, 8, 7, 5), router=ROUTER, num_prompt_tokens=5, seed=3)
    drop_choices(table, 0.1, seed=1).to_pandas().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def page(trace: Path) -> str:
    return render_report(trace, compare=trace)


@pytest.fixture(scope="module")
def payload(page: str) -> dict[str, Any]:
    return read_payload(page)


def test_loads_are_those_of_balance(payload: dict[str, Any], trace: Path) -> None:
    balance = measure_balance(trace)
    for shown, layer in zip(payload["load"]["layers"], balance.layers, strict=True):
        assert shown["load"] == list(layer.load)
        assert shown["max_over_mean"] == near(max(layer.load) / np.mean(layer.load))
        assert shown["random_max_over_mean"] == near(layer.baseline.max_over_mean)
        assert shown["batch_max_over_mean"] == near(layer.max_over_mean_batch)
        assert shown["random_batch_max_over_mean"] == near(layer.baseline.max_over_mean_batch)
        assert shown["num_dead"] == sum(load == 0 for load in layer.load)
        assert shown["random_num_dead"] == near(layer.baseline.num_dead)
    assert len(payload["capacity"]["shares"]) == len(balance.capacity)
    for share, expected in zip(payload["capacity"]["shares"], balance.capacity, strict=True):
        assert share["dropped"] == near(expected.dropped_share)
        assert share["random_dropped"] == near(expected.baseline.dropped_share)
    tiles = {tile["label"]: tile["value"] for tile in payload["tiles"]}
    busiest = max(max(layer.load) / np.mean(layer.load) for layer in balance.layers)
    assert tiles["busiest expert"] == f"{busiest:.2f}×"
    assert tiles["tokens"] == f"{balance.trace.num_tokens:,}"


def test_lifts_are_those_of_specialize(payload: dict[str, Any], trace: Path) -> None:
    result = measure_specialization(trace)
    shown = payload["specialization"]
    names = [domain["name"] for domain in payload["domains"]]
    assert names == [size.domain for size in result.domains]
    places = [(layer["stack"], layer["layer"]) for layer in payload["layers"]]
    assert shown["lifts"]
    for cell in result.experts:
        columns = shown["lifts"][places.index((cell.stack, cell.layer))][names.index(cell.domain)]
        found = [columns[name][cell.expert] for name in ("lift", "low", "high")]
        assert found == [near(one) for one in (cell.lift, cell.lift_low, cell.lift_high)]
        assert (columns["certainty"][cell.expert] == 3) == cell.is_beyond_vocabulary
        assert columns["certainty"][cell.expert] >= 2 * cell.is_certain_expert
    for each, layer in zip(shown["information"], result.layers, strict=True):
        for name in ("normalized", "p_value", "conditional_normalized"):
            assert each[name] == near(getattr(layer, name)), name
        assert each["is_significant"] == (layer.q_value is not None and layer.q_value <= 0.05)
    strongest = result.strongest
    if strongest is None:
        assert not any(cell.is_certain_expert for cell in result.experts)
    else:
        words = f"expert {strongest.expert} of layer {strongest.layer} gets {strongest.lift:.1f}"
        assert any(words in sentence for sentence in payload["verdict"])
        layer = payload["layers"][payload["start"]["layer"]]
        assert (layer["stack"], layer["layer"]) == (strongest.stack, strongest.layer)
        prompt = payload["sample"]["prompts"][payload["start"]["prompt"]]
        assert prompt["domain"] == strongest.domain


def test_characteristic_tokens_are_the_first_of_each_expert(
    payload: dict[str, Any], trace: Path
) -> None:
    result = measure_specialization(trace, by="token")
    places = [(layer["stack"], layer["layer"]) for layer in payload["layers"]]
    expected: dict[tuple[int, int], list[Any]] = {}
    for each in result.tokens:
        mine = expected.setdefault((places.index((each.stack, each.layer)), each.expert), [])
        mine.append([each.assignments, each.occurrences, near(each.lift)])
        mine[-1].append(each.shrunken_lift > each.loads.shrunken_lift)
    for row, experts in enumerate(payload["tokens"]["experts"]):
        for expert, tokens in enumerate(experts):
            mine = expected.get((row, expert), [])
            assert [token[1:] for token in tokens] == mine[: len(tokens)]
            assert tokens or not mine


def test_pairs_are_those_of_coactivation(payload: dict[str, Any], trace: Path) -> None:
    result = measure_coactivation(trace)
    shown = payload["togetherness"]
    assert shown["hit_rate"] == near(result.hit_rate)
    for each, layer in zip(shown["layers"], result.layers, strict=True):
        assert each["num_above"] == layer.num_above
        for pair, expected in zip(each["pairs"], layer.pairs, strict=False):
            assert pair[:3] == [*expected.experts, expected.count]
            assert pair[3] == near(expected.lift)
        lifts = {
            tuple(pair): lift
            for *pair, lift in zip(
                layer.matrix.expert_i.tolist(),
                layer.matrix.expert_j.tolist(),
                layer.matrix.lift.tolist(),
                strict=True,
            )
        }
        expected_lift = layer.matrix.expected_lift
        ratios = (layer.matrix.lift / expected_lift).tolist()
        assert each["matrix"]["lift"] == [near(lift) for lift in layer.matrix.lift.tolist()]
        assert each["matrix"]["over_expected"] == [near(ratio) for ratio in ratios]
        assert layer.matrix.is_significant is not None
        assert each["matrix"]["is_significant"] == layer.matrix.is_significant.tolist()
        for expert, partners in enumerate(each["partners"]):
            for other, lift, _ in partners:
                assert lift == near(lifts[min(expert, other), max(expert, other)])


def test_gpus_batches_and_changes_are_those_of_the_other_commands(
    payload: dict[str, Any], trace: Path
) -> None:
    shown = payload["placements"][-1]
    placement = place_experts(trace, num_gpus=shown["num_gpus"])
    for name, each in shown["methods"].items():
        expected = placement.methods[name]
        assert expected is not None
        assert each["fan_out"] == near(expected.fan_out)
        assert each["batch_imbalance"] == near(expected.batch_imbalance)
    caching = simulate_caches(trace, expert_bytes=1)
    names = ("of", "batch_size", "num_batches")
    touched = [(*(one[name] for name in names), one["experts"]) for one in payload["touched"]]
    assert touched == [
        (one.of, one.batch_size, one.num_batches, near(one.experts)) for one in caching.touched
    ]
    comparison = compare_traces(trace, trace)
    assert payload["comparison"]["overall"]["overlap"] == near(comparison.overall.overlap) == 1
    assert payload["changed"] == [[] for _ in payload["layers"]]


def test_bytes_are_the_experts_and_weights_of_the_sample(
    page: str, payload: dict[str, Any], trace: Path
) -> None:
    sample = sample_prompts(trace)
    ids = [prompt["id"] for prompt in payload["sample"]["prompts"]]
    assert set(ids) <= {prompt.prompt_id for prompt in sample.prompts}
    assert ids
    frame = sample.to_frame()
    frame = frame[frame["prompt_id"].isin(ids)]
    decisions = read_decisions(page)
    for layer, found in zip(sample.layers, decisions, strict=True):
        rows = frame[(frame["layer"] == layer.layer.layer) & (frame["stack"] == layer.layer.stack)]
        shown = [one for row in found.experts for one in row if one is not None]
        order = rows.assign(prompt=rows["prompt_id"].map(ids.index))
        order = order.sort_values(["prompt", "position", "rank"], kind="stable")
        assert shown == order["expert"].tolist()
        assert found.weights is not None
        weights = [
            weight
            for experts, row in zip(found.experts, found.weights, strict=True)
            for expert, weight in zip(experts, row, strict=True)
            if expert is not None
        ]
        kept = order["weight"].to_numpy()
        assert np.abs(np.array(weights) - kept).max() <= 0.51 * kept.max() / 255


def test_more_than_255_experts_take_two_bytes_and_new_tokens_are_marked() -> None:
    router = Router(num_experts=300, top_k=3, num_layers=1)
    table = make_random_trace((5, 4), router=router, num_prompt_tokens=3)
    page = render_report(table.to_pandas(), num_experts=300)
    payload = read_payload(page)
    assert payload["sample"]["shapes"] == [[3, 2]]
    (layer,) = read_decisions(page)
    rows = table.to_pandas().sort_values("prompt_id", kind="stable")
    assert [one for row in layer.experts for one in row] == rows["expert"].tolist()
    assert payload["sample"]["new_tokens"] == [3, 4, 8]


@given(st.floats(allow_nan=True, allow_infinity=True) | st.none() | st.integers())
@example(1.79765e308)
def test_numbers_keep_five_digits(value: float | None) -> None:
    found = shorten(value)
    if value is None or not math.isfinite(value):
        assert found is None
    elif isinstance(value, int):
        assert found == value
    else:
        assert found == pytest.approx(value, rel=5.1e-5, abs=1e-319)
