"""The weight of first choices agrees with plain Python, and with what is known of simple routers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moetool
from moetool.analysis.confidence.measure import COLUMNS, measure_confidence
from moetool.analysis.confidence.result import PERCENTILES, Confidence
from moetool.analysis.confidence.spread import Spread
from moetool.errors import InputError
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, list_decisions, make_random_trace, open_rows

ROUTER = Router(num_layers=2, top_k=3)
# Percentiles are rounded down by at most a part in 2,048.
ROUNDING = 2.0**-11


def measure(table: pa.Table, router: Router = ROUTER) -> Confidence:
    return measure_confidence(DecisionReader(open_rows(table, router=router), columns=COLUMNS))


def scale_weights(table: pa.Table, factor: float) -> pa.Table:
    index = table.schema.get_field_index("weight")
    weights = table["weight"].to_numpy() * np.float32(factor)
    return table.set_column(index, table.schema.field(index), pa.array(weights, pa.float32()))


def find_percentile(values: list[float], percent: int) -> float:
    """Return the smallest value that at least this percentage of the values does not exceed."""
    return sorted(values)[max(1, math.ceil(percent * len(values) / 100)) - 1]


def test_the_figures_are_those_of_the_decisions_one_by_one() -> None:
    table = scale_weights(make_random_trace((40, 7, 25), router=ROUTER), 2.5)
    decisions = list_decisions(table)
    for layer in measure(table).layers:
        mine = [each.weights for each in decisions if each.layer == layer.layer]
        first = [max(weights) for weights in mine]
        share = [max(weights) / sum(weights) for weights in mine]
        assert layer.num_decisions == layer.num_tokens == len(mine) == 72
        assert layer.weight is not None
        assert layer.share is not None
        assert layer.baseline is not None
        assert layer.weight.mean == pytest.approx(sum(first) / len(first), rel=1e-6)
        assert layer.share.mean == pytest.approx(sum(share) / len(share), rel=1e-6)
        for found, values in ((layer.weight, first), (layer.share, share)):
            for percent in PERCENTILES:
                exact = find_percentile(values, percent)
                shown = getattr(found, f"p{percent}")
                assert exact * (1 - ROUNDING) <= shown <= exact * (1 + 1e-6)
        assert layer.baseline.share == pytest.approx(1 / 3)
        assert layer.baseline.weight == pytest.approx(2.5 / 3, rel=1e-5)
        assert layer.is_normalized is False


def test_weights_that_add_up_to_1_are_their_own_shares() -> None:
    for layer in measure(make_random_trace((30, 12), router=ROUTER)).layers:
        assert layer.is_normalized is True
        assert layer.weight is not None
        assert layer.share is not None
        assert layer.weight.p50 == pytest.approx(layer.share.p50, rel=ROUNDING)


def test_a_router_of_equal_weights_is_on_its_baseline() -> None:
    table = make_random_trace((50,), router=ROUTER)
    index = table.schema.get_field_index("weight")
    equal = pa.array(np.full(len(table), 0.25), pa.float32())
    for layer in measure(table.set_column(index, table.schema.field(index), equal)).layers:
        assert layer.weight is not None
        assert layer.share is not None
        assert layer.baseline is not None
        assert layer.weight.p5 == layer.weight.p95 == layer.baseline.weight == 0.25
        assert layer.share.mean == pytest.approx(layer.baseline.share)


def test_decisions_without_a_positive_weight_are_left_out_with_a_note() -> None:
    table = make_random_trace((10, 10), router=ROUTER)
    index = table.schema.get_field_index("weight")
    weights = table["weight"].to_numpy().copy()
    is_silent = (table["layer"].to_numpy() == 0) & (table["position"].to_numpy() < 4)
    weights[is_silent] = 0
    silent = table.set_column(index, table.schema.field(index), pa.array(weights, pa.float32()))
    result = measure(silent)
    assert [layer.num_decisions for layer in result.layers] == [12, 20]
    assert "8 decisions without a positive weight are left out." in result.notes
    weights[:] = 0
    nothing = measure(
        table.set_column(index, table.schema.field(index), pa.array(weights, pa.float32()))
    )
    assert [(layer.weight, layer.baseline) for layer in nothing.layers] == [(None, None)] * 2
    assert set(nothing.to_rows()[0].values()) >= {None, "decoder"}


@given(
    values=st.lists(st.floats(2.0**-20, 200, width=32), min_size=1, max_size=60),
    cut=st.integers(0, 60),
)
def test_parts_in_any_number_have_the_percentiles_of_the_whole(
    values: list[float], cut: int
) -> None:
    spread = Spread()
    for part in (values[:cut], values[cut:]):
        spread.add(np.array(part, dtype=np.float32))
    found = spread.describe()
    assert found is not None
    for percent in PERCENTILES:
        exact = find_percentile(values, percent)
        assert exact * (1 - ROUNDING) <= getattr(found, f"p{percent}") <= exact
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_the_library_measures_a_frame_and_a_path_alike(tmp_path: Path) -> None:
    frame = make_random_trace((9, 4), router=ROUTER).to_pandas()
    frame.to_parquet(tmp_path / "trace.parquet", index=False)
    by_frame = moetool.measure_confidence(frame, layers=[1])
    by_path = moetool.measure_confidence(tmp_path / "trace.parquet", layers=[1])
    assert by_frame.layers == by_path.layers
    assert [layer.layer for layer in by_frame.layers] == [1]
    table = by_frame.to_frame()
    assert table["weight_p50"].tolist() == [by_frame.to_dict()["layers"][0]["weight"]["p50"]]
    assert repr(by_frame).startswith("<Confidence: 1 layer, first choice ")
    assert replace(by_frame, layers=()).to_rows() == []


def test_a_trace_without_weights_is_refused() -> None:
    frame = make_random_trace((9, 4), router=ROUTER).to_pandas().drop(columns="weight")
    with pytest.raises(InputError, match="no column 'weight'"):
        moetool.measure_confidence(frame)
