"""Writing of a trace: parts first, then the complete target or nothing."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path, sidecar_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import TRACE_SCHEMA, plain_schema
from moetool.trace.writing.fileless import NoTrace, TraceStream
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import (
    BEFORE,
    HOSTILE_WORDS,
    columns_of,
    make_layers,
    make_rows,
    make_tokens,
    write_trace,
)
from tests.trace.writing.runs import AFTER, interrupt, names_in


def test_the_target_appears_only_on_finish(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        assert names_in(target.parent) == [f"{target.name}.partial"]
        sink.write(make_rows())
        assert names_in(target.parent) == [f"{target.name}.partial"]
        sink.finish(AFTER)
        assert target.is_file()


def test_nothing_but_the_trace_stays(target: Path) -> None:
    write_trace(target, make_rows(), metadata=AFTER)
    beside = [sidecar_path(target).name] if target.suffix == ".csv" else []
    assert names_in(target.parent) == sorted([target.name, *beside])


@pytest.mark.usefixtures("small_parts")
def test_an_unfinished_trace_is_read_from_its_partial_folder(target: Path) -> None:
    rows = make_rows()
    with TraceFile(target, metadata=AFTER) as sink:
        sink.write(rows)
        partial = partial_folder(target)
        assert columns_of(read_trace(partial)) == rows.to_pydict()
        assert open_trace(partial).metadata == replace(AFTER, complete=False)
        sink.finish(AFTER)


def test_after_an_interrupt_everything_written_is_in_the_partial_folder(target: Path) -> None:
    first, second = make_rows(seed=1), make_rows(seed=2, prompt_ids=["p2", "p3"])
    interrupt(target, first, second)
    assert not target.exists()
    partial = partial_folder(target)
    assert columns_of(read_trace(partial)) == pa.concat_tables([first, second]).to_pydict()
    assert open_trace(partial).metadata == BEFORE


@pytest.mark.usefixtures("small_parts")
def test_an_interrupt_carries_a_note_that_names_the_folder_and_counts_its_rows(
    target: Path,
) -> None:
    tables = [make_rows(seed=1), make_rows(seed=2), make_rows((1,))]
    (note,) = interrupt(target, *tables).__notes__
    assert str(partial_folder(target)) in note
    assert f"{sum(table.num_rows for table in tables)} rows" in note


@pytest.mark.parametrize("tables", [(), (make_rows().slice(0, 0),)], ids=["none", "empty"])
def test_an_interrupt_before_the_first_row_leaves_nothing(
    target: Path, tables: tuple[pa.Table, ...]
) -> None:
    caught = interrupt(target, *tables)
    assert not hasattr(caught, "__notes__")
    assert names_in(target.parent) == []


def test_an_interrupt_after_finish_names_no_folder_that_is_gone(target: Path) -> None:
    def finish_and_break_off() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            sink.finish(AFTER)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        finish_and_break_off()
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not hasattr(caught.value, "__notes__")


def test_a_finish_that_fails_leaves_the_parts(target: Path) -> None:
    def finish_where_a_folder_is_in_the_way() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            target.mkdir()
            sink.finish(AFTER)

    with pytest.raises(UsageError, match="is a folder") as caught:
        finish_where_a_folder_is_in_the_way()
    assert columns_of(read_trace(partial_folder(target))) == make_rows().to_pydict()
    assert str(partial_folder(target)) in caught.value.__notes__[0]


def test_many_parts_merge_to_the_rows_of_one(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The words differ from window to window, and so do the dictionaries of the parts.
    windows = [
        make_rows(
            (3, 2), seed=seed, prompt_ids=[f"p{seed}.0", f"p{seed}.1"], domains=["same", f"d{seed}"]
        )
        for seed in range(5)
    ]
    whole = write_trace(target.with_stem("whole"), *windows)
    monkeypatch.setattr("moetool.trace.writing.parts.ROWS_PER_PART", 7)
    merged = write_trace(target.with_stem("merged"), *windows)
    assert columns_of(read_trace(merged)) == columns_of(read_trace(whole))
    assert columns_of(read_trace(merged)) == pa.concat_tables(windows).to_pydict()


@pytest.mark.usefixtures("small_parts")
def test_parts_are_closed_as_rows_come_in(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        for count in range(1, 4):
            sink.write(make_rows(seed=count))
            parts = [f"part-{number:05d}.parquet" for number in range(count)]
            assert names_in(sink.partial) == ["_lock", *parts]
        sink.finish(AFTER)


def test_a_part_is_closed_when_enough_time_has_passed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.writing.parts.SECONDS_PER_PART", 0.0)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        assert names_in(sink.partial) == ["_lock", "part-00000.parquet"]
        sink.finish(AFTER)


def test_a_trace_without_rows_can_be_written_and_read(target: Path) -> None:
    frame = read_trace(write_trace(target))
    assert list(frame.columns) == TRACE_SCHEMA.names
    assert len(frame) == 0


def test_a_parquet_trace_is_what_pandas_reads(tmp_path: Path) -> None:
    rows = make_rows(pieces=HOSTILE_WORDS[:5])
    path = write_trace(tmp_path / "trace.parquet", rows)
    assert columns_of(pd.read_parquet(path)) == rows.to_pydict()


def test_probabilities_lie_in_a_parquet_file_beside_the_trace(target: Path) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    probabilities = probability_rows(tokens, layers)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(assignment_rows(tokens, layers), probabilities)
        sink.finish(AFTER)
    beside = probabilities_path(target)
    assert beside.name == "trace.probabilities.parquet"
    assert pq.read_table(beside).to_pydict() == probabilities.to_pydict()
    assert columns_of(read_trace(target)) == assignment_rows(tokens, layers).to_pydict()
    assert pq.read_metadata(beside).metadata[b"moetool"].decode() == AFTER.to_json()


@pytest.mark.usefixtures("small_parts")
def test_unfinished_probabilities_do_not_disturb_the_unfinished_trace(target: Path) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    rows, probabilities = assignment_rows(tokens, layers), probability_rows(tokens, layers)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(rows, probabilities)
        assert columns_of(read_trace(sink.partial)) == rows.to_pydict()
        sink.finish(AFTER)


def test_a_stream_carries_the_rows_under_one_header() -> None:
    tables = [make_rows(seed=seed, pieces=HOSTILE_WORDS[seed : seed + 5]) for seed in range(3)]
    stream = io.BytesIO()
    with TraceStream(stream) as sink:
        for table in tables:
            sink.write(table)
        sink.finish(AFTER)
    text = stream.getvalue().decode()
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header == TRACE_SCHEMA.names
    expected = pa.concat_tables(tables).cast(plain_schema(TRACE_SCHEMA))
    assert [np.float32(line.pop()) for line in lines] == expected.column("weight").to_pylist()
    words = [[str(value) for value in row.values()] for row in expected.to_pylist()]
    assert lines == [row[:-1] for row in words]


def test_a_stream_saved_to_a_file_is_a_trace_without_metadata(tmp_path: Path) -> None:
    rows = make_rows(pieces=HOSTILE_WORDS[-5:])
    path = tmp_path / "piped.csv"
    with path.open("wb") as file, TraceStream(file) as sink:
        sink.write(rows)
        sink.finish(AFTER)
    assert columns_of(read_trace(path)) == rows.to_pydict()
    assert open_trace(path).metadata is None


def test_a_stream_without_rows_has_its_header() -> None:
    stream = io.BytesIO()
    with TraceStream(stream) as sink:
        sink.finish(AFTER)
    assert list(csv.reader([stream.getvalue().decode()])) == [TRACE_SCHEMA.names]


def test_no_trace_takes_rows_and_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with NoTrace() as sink:
        sink.write(make_rows())
        sink.finish(AFTER)
    assert names_in(tmp_path) == []
