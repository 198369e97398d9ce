"""How a trace comes into being: parts first, the target whole or not at all."""

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
from moetool.trace.partial import partial_folder
from moetool.trace.reader import open_trace, read_trace
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import TRACE_SCHEMA, plain_schema
from moetool.trace.writer import (
    NoTrace,
    TraceFile,
    TraceStream,
    check_target,
)
from tests.trace.examples import (
    BEFORE,
    HOSTILE_WORDS,
    break_off,
    columns_of,
    describe_layers,
    make_layers,
    make_rows,
    make_tokens,
    write_trace,
)

AFTER = replace(BEFORE, complete=True, layers=describe_layers(), num_tokens=5)


@pytest.fixture(params=[".parquet", ".csv"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"trace{request.param}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close a part as soon as it has seven rows."""
    monkeypatch.setattr("moetool.trace.parts.ROWS_PER_PART", 7)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt(target: Path, *tables: pa.Table, replace_existing: bool = False) -> BaseException:
    """Break a run off after some tables, and return the interrupt as it comes out."""
    with pytest.raises(KeyboardInterrupt) as caught:
        break_off(target, *tables, replace_existing=replace_existing)
    return caught.value


def write_with_probabilities(target: Path, *, replace_existing: bool = False) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    with TraceFile(target, metadata=BEFORE, replace_existing=replace_existing) as sink:
        sink.write(assignment_rows(tokens, layers), probability_rows(tokens, layers))
        sink.finish(AFTER)


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
    first, second = make_rows(seed=1), make_rows(seed=2)
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
    # Every window has its own words, so every part has its own dictionaries.
    windows = [
        make_rows(
            (3, 2), seed=seed, prompt_ids=[f"p{seed}.0", f"p{seed}.1"], domains=["same", f"d{seed}"]
        )
        for seed in range(5)
    ]
    whole = write_trace(target.with_stem("whole"), *windows)
    monkeypatch.setattr("moetool.trace.parts.ROWS_PER_PART", 7)
    merged = write_trace(target.with_stem("merged"), *windows)
    assert columns_of(read_trace(merged)) == columns_of(read_trace(whole))
    assert columns_of(read_trace(merged)) == pa.concat_tables(windows).to_pydict()


@pytest.mark.usefixtures("small_parts")
def test_parts_are_closed_as_rows_come_in(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        for count in range(1, 4):
            sink.write(make_rows(seed=count))
            parts = [f"part-{number:05d}.parquet" for number in range(count)]
            assert names_in(sink.partial) == ["lock", *parts]
        sink.finish(AFTER)


def test_a_part_is_closed_when_enough_time_has_passed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.parts.SECONDS_PER_PART", 0.0)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        assert names_in(sink.partial) == ["lock", "part-00000.parquet"]
        sink.finish(AFTER)


def test_a_trace_without_rows_can_be_written_and_read(target: Path) -> None:
    frame = read_trace(write_trace(target))
    assert list(frame.columns) == TRACE_SCHEMA.names
    assert len(frame) == 0


def test_a_parquet_trace_is_what_pandas_reads(tmp_path: Path) -> None:
    rows = make_rows(pieces=HOSTILE_WORDS[:5])
    path = write_trace(tmp_path / "trace.parquet", rows)
    assert columns_of(pd.read_parquet(path)) == rows.to_pydict()


# Probabilities


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


# --force


def test_an_existing_trace_is_kept_until_its_replacement_is_finished(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    assert old.to_pydict() != new.to_pydict()
    write_trace(target, old, metadata=AFTER)
    with TraceFile(target, metadata=BEFORE, replace_existing=True) as sink:
        sink.write(new)
        assert columns_of(read_trace(target)) == old.to_pydict()
        assert open_trace(target).metadata == AFTER
        sink.finish(replace(AFTER, model="new"))
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert open_trace(target).metadata == replace(AFTER, model="new")


def test_an_interrupted_replacement_leaves_the_old_trace(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    write_trace(target, old, metadata=AFTER)
    interrupt(target, new, replace_existing=True)
    assert columns_of(read_trace(target)) == old.to_pydict()
    assert open_trace(target).metadata == AFTER
    assert columns_of(read_trace(partial_folder(target))) == new.to_pydict()


@pytest.mark.usefixtures("small_parts")
def test_force_discards_the_parts_of_an_unfinished_run(target: Path) -> None:
    interrupt(target, make_rows(seed=1), make_rows(seed=2))
    new = make_rows(seed=3)
    write_trace(target, new, replace_existing=True)
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert not partial_folder(target).exists()


def test_a_replacement_leaves_no_probabilities_of_the_trace_it_replaced(target: Path) -> None:
    write_with_probabilities(target)
    write_trace(target, make_rows(seed=2), replace_existing=True)
    assert not probabilities_path(target).exists()


# What can't be written to


def refusal(target: Path) -> str:
    with pytest.raises(UsageError) as caught:
        check_target(target, replace_existing=False)
    return caught.value.message


def test_an_existing_trace_is_not_replaced_without_force(target: Path) -> None:
    target.touch()
    assert refusal(target) == f"'{target}' exists."
    check_target(target, replace_existing=True)


def test_existing_probabilities_are_not_replaced_without_force(target: Path) -> None:
    write_with_probabilities(target)
    target.unlink()
    sidecar_path(target).unlink(missing_ok=True)
    assert refusal(target) == f"'{probabilities_path(target)}' exists."
    check_target(target, replace_existing=True)


def test_parts_of_an_unfinished_run_are_not_discarded_without_force(target: Path) -> None:
    interrupt(target, make_rows())
    assert "unfinished run" in refusal(target)
    check_target(target, replace_existing=True)


def test_a_name_of_no_known_format_is_refused(tmp_path: Path) -> None:
    assert "format" in refusal(tmp_path / "trace.json")


def test_a_folder_is_refused_as_a_target(target: Path) -> None:
    target.mkdir()
    assert "is a folder" in refusal(target)


def test_a_target_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "missing" / "trace.parquet")


def test_the_check_leaves_no_mark(target: Path) -> None:
    check_target(target, replace_existing=False)
    assert names_in(target.parent) == []


# CSV on a stream


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
