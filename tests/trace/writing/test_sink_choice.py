"""The place of a trace's rows: chosen by the output, the format and whether stdout is a terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import NoTrace, TraceStream
from moetool.trace.writing.sink_choice import choose_sink
from moetool.trace.writing.writer import TraceFile


class Stdout(io.TextIOWrapper):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__(io.BytesIO())
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("output", "trace_format", "is_terminal", "keeps_rows"),
    [
        (None, None, True, False),
        (None, None, False, True),
        (None, "csv", True, True),
        (Path("-"), None, True, True),
        (Path("-"), None, False, True),
    ],
)
def test_rows_go_to_stdout_unless_they_would_fill_a_terminal_unasked(
    monkeypatch: pytest.MonkeyPatch,
    output: Path | None,
    trace_format: str | None,
    is_terminal: bool,
    keeps_rows: bool,
) -> None:
    stdout = Stdout(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", stdout)

    choice = choose_sink(output, trace_format)

    assert choice.target is None
    assert choice.keeps_rows == keeps_rows
    sink = choice.open(TraceMetadata())
    assert type(sink) is (TraceStream if keeps_rows else NoTrace)
    written = stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert written.startswith(b'"prompt_id"') == keeps_rows


@pytest.mark.parametrize("trace_format", [None, "csv"])
def test_rows_go_to_a_file(tmp_path: Path, trace_format: str | None) -> None:
    target = tmp_path / "trace.csv"

    choice = choose_sink(target, trace_format, with_probabilities=True)

    assert choice.target == target
    assert choice.keeps_rows
    with choice.open(TraceMetadata()) as sink:
        assert isinstance(sink, TraceFile)
        assert sink.target == target


@pytest.mark.parametrize(
    ("name", "trace_format", "with_probabilities", "message"),
    [
        (None, None, True, "must go to a file"),
        ("-", None, True, "must go to a file"),
        (None, "parquet", False, "Parquet can't be written to stdout"),
        ("trace.parquet", "csv", False, "The format csv contradicts"),
        ("trace.txt", None, False, "The format of"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(
    tmp_path: Path,
    name: str | None,
    trace_format: str | None,
    with_probabilities: bool,
    message: str,
) -> None:
    output = None if name is None else Path("-") if name == "-" else tmp_path / name
    with pytest.raises(UsageError, match=message):
        choose_sink(output, trace_format, with_probabilities=with_probabilities)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    target.touch()
    with pytest.raises(UsageError, match="exists"):
        choose_sink(target)
    assert choose_sink(target, replace_existing=True).replace_existing
