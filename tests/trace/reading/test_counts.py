"""Counts of assignments, against pandas, and shapes inferred without metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.errors import InputError
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, GroupColumn, count_experts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.reading.reader import open_trace
from moetool.trace.rows import assignment_rows
from moetool.trace.writing.partial import partial_folder
from tests.trace.examples import (
    NUM_EXPERTS,
    break_off,
    describe_layers,
    make_layers,
    make_rows,
    make_tokens,
    traces,
    write_trace,
)

BY: tuple[GroupColumn, ...] = ("domain", "prompt_id")


def layers_of(frame: pd.DataFrame) -> list[RoutedLayer]:
    """Return the metadata that the trace should have had."""
    top_k = frame.groupby("layer")["rank"].max() + 1
    return list(describe_layers(top_k=[int(k) for k in top_k]))


def to_plain_frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame(table.to_pydict())


def count_tables(
    tables: Sequence[pa.Table], layers: Sequence[RoutedLayer], *, by: GroupColumn
) -> ExpertCounts:
    counter = ExpertCounter(by=by)
    for table in tables:
        counter.add(table)
    return counter.counts(layers)


def cut(table: pa.Table, *, num_rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, num_rows):
        yield table.slice(start, num_rows)


def assignments_of(counts: ExpertCounts) -> dict[tuple[Any, ...], int]:
    """Return how often each (group, layer, expert) occurs, without those that do not."""
    return {
        (counts.groups[group], layer.layer, int(expert)): int(layer.assignments[group, expert])
        for layer in counts.layers
        for group, expert in np.argwhere(layer.assignments)
    }


def decisions_of(counts: ExpertCounts) -> dict[tuple[Any, ...], int]:
    return {
        (group, layer.layer): int(decisions)
        for layer in counts.layers
        for group, decisions in zip(counts.groups, layer.decisions, strict=True)
    }


def assert_same_counts(left: ExpertCounts, right: ExpertCounts) -> None:
    assert left.groups == right.groups
    assert left.domains == right.domains
    for one, other in zip(left.layers, right.layers, strict=True):
        assert (one.stack, one.layer, one.top_k) == (other.stack, other.layer, other.top_k)
        assert one.assignments.tolist() == other.assignments.tolist()
        assert one.decisions.tolist() == other.decisions.tolist()


# Against pandas


@pytest.mark.parametrize("by", BY)
@settings(deadline=None, max_examples=50)
@given(table=traces(), num_rows=st.integers(1, 40))
def test_counts_are_those_of_a_groupby(by: GroupColumn, table: pa.Table, num_rows: int) -> None:
    frame = to_plain_frame(table)
    counts = count_tables(list(cut(table, num_rows=num_rows)), layers_of(frame), by=by)
    assert assignments_of(counts) == frame.groupby([by, "layer", "expert"]).size().to_dict()
    decisions = frame[frame["rank"] == 0].groupby([by, "layer"]).size()
    assert decisions_of(counts) == decisions.to_dict()
    assert [layer.num_experts for layer in counts.layers] == [NUM_EXPERTS] * len(counts.layers)


@settings(deadline=None, max_examples=50)
@given(table=traces())
def test_every_prompt_has_its_domain(table: pa.Table) -> None:
    frame = to_plain_frame(table)
    counts = count_tables([table], layers_of(frame), by="prompt_id")
    domain_of = frame.groupby("prompt_id")["domain"].first().to_dict()
    assert dict(zip(counts.groups, counts.domains, strict=True)) == domain_of


@pytest.mark.parametrize("by", BY)
@settings(deadline=None, max_examples=50)
@given(table=traces(), num_rows=st.integers(1, 40))
def test_counts_do_not_depend_on_the_chunks_that_rows_come_in(
    by: GroupColumn, table: pa.Table, num_rows: int
) -> None:
    layers = layers_of(to_plain_frame(table))
    whole = count_tables([table], layers, by=by)
    assert_same_counts(count_tables(list(cut(table, num_rows=num_rows)), layers, by=by), whole)


@pytest.mark.parametrize("by", BY)
def test_groups_come_in_the_order_they_first_occur(by: GroupColumn) -> None:
    rows = make_rows((1, 1, 1), prompt_ids=["z", "a", "m"], domains=["z", "a", "m"])
    assert count_tables([rows], describe_layers(), by=by).groups == ("z", "a", "m")


def test_layers_come_in_the_order_of_stack_and_number() -> None:
    places = [("encoder", 3), ("decoder", 10), ("encoder", 1), ("decoder", 9)]
    decisions = [
        replace(item, stack=stack, layer=layer)
        for item, (stack, layer) in zip(make_layers(5, top_k=(2,) * 4), places, strict=True)
    ]
    layers = [replace(describe_layers()[0], stack=stack, layer=layer) for stack, layer in places]
    rows = assignment_rows(make_tokens([5]), decisions)
    counts = count_tables([rows], layers, by="domain")
    assert [(layer.stack, layer.layer) for layer in counts.layers] == sorted(places)


def test_an_empty_table_counts_nothing() -> None:
    rows = make_rows()
    layers = describe_layers()
    assert_same_counts(
        count_tables([rows.slice(0, 0), rows, rows.slice(0, 0)], layers, by="domain"),
        count_tables([rows], layers, by="domain"),
    )


# Stored traces


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_stored_trace_has_the_counts_of_its_rows(
    suffix: str, by: GroupColumn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.writing.parts.ROWS_PER_PART", 30)
    tables = [
        make_rows((4, 3), seed=seed, prompt_ids=[f"{seed}a", f"{seed}b"]) for seed in range(4)
    ]
    path = write_trace(tmp_path / f"trace{suffix}", *tables)
    counts = count_experts(open_trace(path), by=by)
    assert_same_counts(counts, count_tables(tables, describe_layers(), by=by))
    assert counts.notes == ()


@pytest.mark.parametrize("by", BY)
def test_an_unfinished_trace_can_be_counted(by: GroupColumn, tmp_path: Path) -> None:
    rows = make_rows()
    target = tmp_path / "trace.parquet"
    with pytest.raises(KeyboardInterrupt):
        break_off(target, rows)
    source = open_trace(partial_folder(target))
    counts = count_experts(source, by=by, num_experts=NUM_EXPERTS, top_k=2)
    assert_same_counts(counts, count_tables([rows], describe_layers(), by=by))


def test_identity_experts_come_after_the_routed_ones_chosen_or_not(tmp_path: Path) -> None:
    layers = tuple(
        replace(layer, num_experts=4, num_identity_experts=5) for layer in describe_layers()
    )
    metadata = TraceMetadata(complete=True, layers=layers)
    path = write_trace(tmp_path / "trace.parquet", make_rows((9,)), metadata=metadata)
    for layer in count_experts(open_trace(path), by="domain").layers:
        assert layer.num_experts == 9
        assert layer.assignments[0, 4:NUM_EXPERTS].all()
        assert not layer.assignments[0, NUM_EXPERTS:].any()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_trace_without_rows_is_refused(suffix: str, tmp_path: Path) -> None:
    path = write_trace(tmp_path / f"trace{suffix}")
    with pytest.raises(InputError, match="holds no rows"):
        count_experts(open_trace(path), by="domain")


def test_ids_beyond_the_metadatas_number_of_experts_are_refused(tmp_path: Path) -> None:
    layers = tuple(replace(layer, num_experts=2) for layer in describe_layers())
    metadata = TraceMetadata(complete=True, layers=layers)
    path = write_trace(tmp_path / "trace.parquet", make_rows((9,)), metadata=metadata)
    with pytest.raises(InputError):
        count_experts(open_trace(path), by="domain")


# Traces without metadata


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
    assert "top-2" in top_k_note
    assert "--top-k" in top_k_note


def test_what_is_said_of_a_trace_is_not_inferred(tmp_path: Path) -> None:
    source = open_trace(write_foreign(tmp_path / "foreign.csv"))
    counts = count_experts(source, by="prompt_id", num_experts=8, top_k=2)
    assert [layer.num_experts for layer in counts.layers] == [8]
    assert counts.notes == ()
    (note,) = count_experts(source, by="prompt_id", num_experts=8).notes
    assert "top-2" in note
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
