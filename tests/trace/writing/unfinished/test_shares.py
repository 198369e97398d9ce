"""Traces to which several processes add parts, and which the first of them finishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.trace.reading.reader import read_trace
from moetool.trace.writing.partial import PartialFolder, partial_folder
from moetool.trace.writing.share import TraceShare
from moetool.trace.writing.writer import TraceFile, TraceSink
from tests.trace.examples import BEFORE, columns_of
from tests.trace.writing.runs import AFTER
from tests.trace.writing.unfinished.pieces import IDENTITY, Window, make_window
from tests.trace.writing.unfinished.test_pieces import WINDOWS, rows_of


def write_windows(sink: TraceSink, *windows: Window) -> None:
    for window in windows:
        for piece in window.cut(2):
            sink.commit(sink.encode(piece))


def test_parts_of_all_processes_become_one_trace(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as first:
        with TraceShare(target, metadata=BEFORE, invitation=first.invite()) as second:
            write_windows(second, WINDOWS[1])
            write_windows(first, WINDOWS[0])
            write_windows(second, WINDOWS[2])
        assert list(first.list_finished()) == [0, 1, 2]
        first.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)
    assert not partial_folder(target).exists()


def test_the_first_process_keeps_the_parts_of_others_when_it_fails(target: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(KeyError) as caught,
        TraceFile(target, metadata=BEFORE, identity=IDENTITY) as first,
    ):
        with TraceShare(target, metadata=BEFORE, invitation=first.invite()) as second:
            write_windows(second, WINDOWS[1])
        raise KeyError
    num_rows = sum(rows.num_rows for rows in WINDOWS[1].rows)
    assert caught.value.__notes__ == [
        f"rows traced so far: {partial_folder(target)} ({num_rows} rows); "
        "--resume goes on with them"
    ]
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY, resume=True) as resumed:
        assert list(resumed.list_finished()) == [1]
        write_windows(resumed, WINDOWS[0], WINDOWS[2])
        resumed.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)


def test_a_process_that_fails_says_what_all_have_traced(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as first:
        write_windows(first, WINDOWS[0])
        share = TraceShare(target, metadata=BEFORE, invitation=first.invite())
        with pytest.raises(KeyError) as caught, share:
            raise KeyError
        num_rows = sum(rows.num_rows for rows in WINDOWS[0].rows)
        assert f"({num_rows} rows); --resume" in caught.value.__notes__[0]
        # The folder is the first process's to release.
        first.encode(WINDOWS[1].cut(1)[0])


def test_batches_that_an_interrupted_run_kept_are_found_by_each_process(target: Path) -> None:
    window = make_window(1)
    with (  # noqa: PT012
        pytest.raises(KeyError),
        TraceFile(target, metadata=BEFORE, identity=IDENTITY) as killed,
    ):
        killed.keep_batch(window.batch(0, (0, 2)))
        raise KeyError
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY, resume=True) as first:
        with TraceShare(target, metadata=BEFORE, invitation=first.invite()) as second:
            assert list(second.kept_batches(1)) == [0]
            write_windows(second, window)
        write_windows(first, WINDOWS[0], WINDOWS[2])
        first.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)


def test_a_folder_that_is_not_shared_is_refused(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as first:
        with pytest.raises(UsageError, match=r"does not see '.*\.partial', which the first"):
            PartialFolder.join(target, holder=b"of another host", timeout_s=0.0)
        elsewhere = target.with_name("elsewhere.parquet")
        with pytest.raises(UsageError, match=r"does not see '.*elsewhere\.parquet\.partial'"):
            PartialFolder.join(elsewhere, holder=first.invite().holder, timeout_s=0.0)
