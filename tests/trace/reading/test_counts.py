"""Counts of assignments, against pandas, and shapes inferred without metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounter, GroupColumn, count_experts
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
from tests.trace.reading.counting import (
    BY,
    assert_same_counts,
    assignments_of,
    count_tables,
    cut,
    decisions_of,
    layers_of,
    to_plain_frame,
)


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
@settings(deadline=None, max_examples=50)
@given(table=traces(), num_rows=st.integers(1, 40))
def test_counts_of_several_counters_add_up(by: GroupColumn, table: pa.Table, num_rows: int) -> None:
    layers = layers_of(to_plain_frame(table))
    total = ExpertCounter(by=by)
    for part in cut(table, num_rows=num_rows):
        counter = ExpertCounter(by=by)
        counter.add(part)
        total.add_counter(counter)
    assert_same_counts(total.counts(layers), count_tables([table], layers, by=by))


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
