"""Traces without metadata are counted, and what is inferred is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import InputError
from moetool.trace.reading.counts import GroupColumn, count_experts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.reading.reader import open_trace
from tests.trace.examples import (
    NUM_EXPERTS,
    describe_layers,
    make_rows,
)
from tests.trace.reading.counting import BY


def write_foreign(path: Path, **columns: Any) -> Path:
    """Write a trace as other tools do, by default with one layer, top-2 and two prompts."""
    values: dict[str, Any] = {
        "prompt_id": ["a", "a", "a", "a", "b", "b"],
        "position": [0, 0, 1, 1, 0, 0],
        "layer": 0,
        "expert": [1, 4, 2, 1, 0, 1],
    }
    pd.DataFrame(values | columns).to_csv(path, index=False)
    return path


def test_without_metadata_what_is_inferred_is_noted(tmp_path: Path) -> None:
    counts = count_experts(open_trace(write_foreign(tmp_path / "foreign.csv")), by="prompt_id")
    (layer,) = counts.layers
    assert (layer.stack, layer.num_experts, layer.top_k) == ("decoder", 5, 2)
    assert layer.assignments.tolist() == [[0, 2, 1, 0, 1], [1, 1, 0, 0, 0]]
    assert layer.decisions.tolist() == [2, 1]
    assert counts.groups == ("a", "b")
    assert counts.domains == ("(none)", "(none)")
    experts_note, top_k_note = counts.notes
    assert "5 experts are assumed" in experts_note
    assert "--num-experts" in experts_note
    assert "Top-2" in top_k_note
    assert "--top-k" in top_k_note


def test_what_is_said_of_a_trace_is_not_inferred(tmp_path: Path) -> None:
    source = open_trace(write_foreign(tmp_path / "foreign.csv"))
    counts = count_experts(source, by="prompt_id", num_experts=8, top_k=2)
    assert [layer.num_experts for layer in counts.layers] == [8]
    assert counts.notes == ()
    (note,) = count_experts(source, by="prompt_id", num_experts=8).notes
    assert "Top-2" in note
    (note,) = count_experts(source, by="prompt_id", top_k=2).notes
    assert "5 experts are assumed" in note


def test_a_number_of_experts_that_the_ids_contradict_is_an_error(tmp_path: Path) -> None:
    source = open_trace(write_foreign(tmp_path / "foreign.csv"))
    assert count_experts(source, by="domain", num_experts=5).layers[0].num_experts == 5
    with pytest.raises(InputError, match=r"ids up to 4, but --num-experts says 4"):
        count_experts(source, by="domain", num_experts=4)


def test_a_top_k_that_the_rows_contradict_is_an_error(tmp_path: Path) -> None:
    source = open_trace(write_foreign(tmp_path / "foreign.csv"))
    with pytest.raises(InputError, match="--top-k"):
        count_experts(source, by="domain", top_k=1)


def test_without_metadata_layers_may_differ_in_top_k(tmp_path: Path) -> None:
    path = write_foreign(
        tmp_path / "foreign.csv",
        prompt_id="a",
        position=[0, 0, 0, 1, 1, 1],
        layer=[0, 1, 1, 0, 1, 1],
        expert=[1, 2, 1, 0, 1, 2],
    )
    counts = count_experts(open_trace(path), by="domain")
    assert [layer.decisions.tolist() for layer in counts.layers] == [[2], [2]]


def test_the_same_layer_number_in_two_stacks_is_two_layers(tmp_path: Path) -> None:
    stacks = ["encoder", "decoder"] * 3
    path = write_foreign(tmp_path / "foreign.csv", stack=stacks)
    counts = count_experts(open_trace(path), by="domain")
    assert [(layer.stack, layer.layer) for layer in counts.layers] == [
        ("decoder", 0),
        ("encoder", 0),
    ]
    assert [layer.top_k for layer in counts.layers] == [1, 1]


@pytest.mark.parametrize("by", BY)
def test_a_decision_that_ran_no_expert_counts_without_an_assignment(
    by: GroupColumn, tmp_path: Path
) -> None:
    path = write_foreign(tmp_path / "foreign.csv", expert=[1, -1, -1, -1, 0, 1])
    (layer,) = count_experts(open_trace(path), by=by).layers
    assert layer.num_experts == 2
    assert layer.assignments.sum(axis=0).tolist() == [1, 2]
    assert layer.decisions.sum() == 3


def test_a_layer_where_no_expert_ran_has_decisions_only(tmp_path: Path) -> None:
    path = write_foreign(
        tmp_path / "foreign.csv", layer=[0, 0, 1, 1, 0, 0], expert=[1, 0, -1, -1, 0, 1]
    )
    _, skipped = count_experts(open_trace(path), by="domain").layers
    assert skipped.assignments.tolist() == [[0, 0]]
    assert skipped.decisions.tolist() == [1]


@pytest.mark.parametrize(
    "columns",
    [
        {"expert": [1, 4, 2, 1, 0, -2]},
        {"expert": [-2, 4, 2, 1, 0, 1]},
        {"layer": [0, 0, 0, 0, -3, -3]},
    ],
    ids=["last expert", "first expert", "layer"],
)
def test_numbers_that_no_trace_has_are_refused(columns: dict[str, Any], tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "foreign.csv", **columns)
    with pytest.raises(InputError):
        count_experts(open_trace(path), by="prompt_id")


def write_missing(path: Path, column: str) -> Path:
    """Write a trace with an empty column in its fourth row or first prompt."""
    rows = make_rows((2, 2)).to_pydict()
    # A prompt has one domain or none.
    missing = range(8) if column == "domain" else [3]
    for row in missing:
        rows[column][row] = None
    pq.write_table(pa.table(rows), path)
    return path


@pytest.mark.parametrize("column", ["prompt_id", "layer", "expert"])
def test_a_missing_value_is_refused(column: str, tmp_path: Path) -> None:
    path = write_missing(tmp_path / "foreign.parquet", column)
    with pytest.raises(InputError):
        count_experts(open_trace(path), by="prompt_id")


def test_a_missing_domain_is_none(tmp_path: Path) -> None:
    path = write_missing(tmp_path / "foreign.parquet", "domain")
    assert set(count_experts(open_trace(path), by="domain").groups) == {"prose", "(none)"}


def test_domains_are_counted_in_layers_of_different_numbers_of_experts() -> None:
    rows = make_rows((3, 2), domains=["x", "y"])
    few = rows.append_column("kept", pa.array(rows.column("layer").to_numpy() == 0))
    small = few.set_column(
        few.schema.get_field_index("expert"),
        "expert",
        pa.array(
            np.where(
                few.column("layer").to_numpy() == 0,
                few.column("rank").to_numpy(),
                few.column("expert").to_numpy(),
            ).astype(np.int16)
        ),
    ).drop_columns(["kept"])
    layers = (replace(describe_layers()[0], num_experts=2), describe_layers()[1])
    counter = DomainCounter()
    counter.add(small)
    counts = counter.counts(layers)
    assert [layer.num_experts for layer in counts.layers] == [2, NUM_EXPERTS]
    assert all(int(layer.assignments.sum()) == 10 for layer in counts.layers)
