"""Parts that are joined while others are still being made."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from moetool.trace.reading.reader import read_trace
from moetool.trace.writing.formats.joined_files import ParquetJoin, join_parquet
from moetool.trace.writing.parts import PartWriter
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import BEFORE, columns_of
from tests.trace.writing.runs import AFTER
from tests.trace.writing.unfinished.pieces import IDENTITY, Window
from tests.trace.writing.unfinished.test_pieces import WINDOWS, rows_of


def commit(sink: TraceFile, *windows: Window) -> None:
    for window in windows:
        for piece in window.cut(2):
            sink.commit(sink.encode(piece))


@pytest.fixture
def joined_anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of parts of each file that was joined in the end."""
    numbers: list[int] = []

    def join(parts: list[Path], *args: object, **kwargs: object) -> None:
        numbers.append(len(parts))
        join_parquet(parts, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("moetool.trace.writing.parts.join_parquet", join)
    return numbers


def test_joining_ahead_makes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined_anew: list[int]
) -> None:
    files = []
    for name in ("ahead.parquet", "later.parquet"):
        with TraceFile(tmp_path / name, metadata=BEFORE, identity=IDENTITY) as sink:
            commit(sink, *WINDOWS)
            sink.finish(AFTER)
        files.append((tmp_path / name).read_bytes())
        monkeypatch.setattr(PartWriter, "join_ahead", lambda *_: None)
    assert files[0] == files[1]
    # Besides the two files of probabilities.
    assert len(joined_anew) == 3


def test_a_resumed_run_joins_what_was_there_before(tmp_path: Path, joined_anew: list[int]) -> None:
    target = tmp_path / "trace.parquet"
    with (
        suppress(KeyboardInterrupt),
        TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink,
    ):
        commit(sink, *WINDOWS[:1])
        raise KeyboardInterrupt
    assert not (sink.partial / "_whole").exists()
    # A run that was killed leaves it.
    (sink.partial / "_whole").write_bytes(b"PAR1")
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY, resume=True) as sink:
        commit(sink, *WINDOWS[1:])
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)
    assert len(joined_anew) == 1


def test_a_failure_meanwhile_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined_anew: list[int]
) -> None:
    target = tmp_path / "trace.parquet"
    adding = ParquetJoin.add

    def fail_once(join: ParquetJoin, path: Path) -> None:
        del join, path
        monkeypatch.setattr(ParquetJoin, "add", adding)
        raise OSError(5, "the disk failed for a moment")

    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        commit(sink, *WINDOWS[:1])
        monkeypatch.setattr(ParquetJoin, "add", fail_once)
        commit(sink, *WINDOWS[1:])
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)
    assert len(joined_anew) == 2


def test_parts_in_another_order_are_joined_anew(tmp_path: Path, joined_anew: list[int]) -> None:
    target = tmp_path / "trace.parquet"
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        commit(sink, WINDOWS[0], WINDOWS[2], WINDOWS[1])
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)
    assert len(joined_anew) == 2
