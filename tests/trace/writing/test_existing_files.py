"""Files that exist where a trace is to go, and runs with the same target."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path, sidecar_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import (
    BEFORE,
    columns_of,
    make_rows,
    write_trace,
)
from tests.trace.writing.runs import AFTER, interrupt, names_in, refusal, write_with_probabilities


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


def probabilities_of_another(target: Path) -> bytes:
    """Put the probabilities of another trace, whose name differs in its suffix, next to a target."""
    other = target.with_suffix(".parquet" if target.suffix == ".csv" else ".csv")
    write_with_probabilities(other)
    return probabilities_path(target).read_bytes()


def test_probabilities_of_another_trace_are_left_alone(target: Path) -> None:
    theirs = probabilities_of_another(target)
    check_target(target, replace_existing=False)
    write_trace(target, make_rows())
    write_trace(target, make_rows(), replace_existing=True)
    assert probabilities_path(target).read_bytes() == theirs


def test_probabilities_of_another_trace_are_never_replaced(target: Path) -> None:
    theirs = probabilities_of_another(target)
    with pytest.raises(UsageError, match=r"exists and belongs to 'trace\.") as early:
        check_target(target, replace_existing=True, with_probabilities=True)
    with pytest.raises(UsageError) as late:
        write_with_probabilities(target, replace_existing=True)
    assert late.value.message == early.value.message
    assert probabilities_path(target).read_bytes() == theirs
    assert len(read_trace(partial_folder(target))) > 0


@pytest.mark.parametrize("content", [b"", b"PAR1 not quite", None], ids=["empty", "broken", "bare"])
def test_probabilities_of_nobody_are_never_replaced(content: bytes | None, target: Path) -> None:
    path = probabilities_path(target)
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for force in (False, True):
        with pytest.raises(UsageError, match="does not state that it belongs to"):
            check_target(target, replace_existing=force)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema": "moetool.inspect/1"}'])
def test_a_sidecar_that_is_not_a_trace_s_is_never_replaced(content: str, tmp_path: Path) -> None:
    target = tmp_path / "trace.csv"
    sidecar_path(target).write_text(content, encoding="utf-8")
    for force in (False, True):
        with pytest.raises(UsageError, match="is not the metadata of a trace"):
            check_target(target, replace_existing=force)
    assert sidecar_path(target).read_text(encoding="utf-8") == content


@pytest.mark.parametrize("companion_path", [sidecar_path, probabilities_path])
def test_what_goes_with_a_trace_is_never_a_link(
    companion_path: Callable[[Path], Path], target: Path
) -> None:
    target = target.with_suffix(".csv")
    elsewhere = target.with_name("elsewhere.csv")
    write_with_probabilities(elsewhere)
    companion_path(target).symlink_to(companion_path(elsewhere))
    with pytest.raises(UsageError, match="exists and"):
        check_target(target, replace_existing=True)
    assert companion_path(elsewhere).is_file()


@pytest.mark.parametrize(
    "name", ["notes.txt", "part-1.parquet", "_probabilities/notes.txt", "sub/a"]
)
def test_a_folder_that_holds_more_than_parts_is_never_emptied(name: str, target: Path) -> None:
    interrupt(target, make_rows())
    kept = partial_folder(target) / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"kept")
    parts = names_in(partial_folder(target))
    for force in (False, True):
        with pytest.raises(UsageError, match="which no run of moetool wrote"):
            TraceFile(target, metadata=BEFORE, replace_existing=force)
    assert names_in(partial_folder(target)) == parts
    assert kept.read_bytes() == b"kept"


def test_what_someone_puts_among_the_parts_stays(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        (sink.partial / "notes.txt").write_bytes(b"kept")
        sink.finish(AFTER)
    assert names_in(partial_folder(target)) == ["notes.txt"]
    assert columns_of(read_trace(target)) == make_rows().to_pydict()


@pytest.mark.parametrize("leads_to", ["folder", "missing"])
def test_parts_never_go_through_a_link(leads_to: str, target: Path) -> None:
    elsewhere = target.with_name("folder")
    elsewhere.mkdir()
    (elsewhere / "part-00000.parquet").write_bytes(b"kept")
    partial_folder(target).symlink_to(target.with_name(leads_to))
    with pytest.raises(UsageError, match="is not a folder, but the parts"):
        TraceFile(target, metadata=BEFORE, replace_existing=True)
    assert names_in(elsewhere) == ["part-00000.parquet"]


def test_a_trace_through_a_link_replaces_the_link(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    elsewhere = write_trace(target.with_stem("elsewhere"), old)
    target.symlink_to(elsewhere)
    assert refusal(target) == f"'{target}' exists."
    write_trace(target, new, replace_existing=True)
    assert not target.is_symlink()
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert columns_of(read_trace(elsewhere)) == old.to_pydict()


def test_a_target_that_appears_during_the_run_is_kept_and_so_are_the_parts(target: Path) -> None:
    def write_while_another_does() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            target.write_bytes(b"kept")
            sink.finish(AFTER)

    with pytest.raises(UsageError, match="exists") as caught:
        write_while_another_does()
    assert target.read_bytes() == b"kept"
    assert str(partial_folder(target)) in caught.value.__notes__[0]
    assert columns_of(read_trace(partial_folder(target))) == make_rows().to_pydict()
    assert names_in(partial_folder(target)) == ["_lock", "part-00000.parquet"]


@pytest.mark.usefixtures("small_parts")
def test_an_input_is_refused_as_a_target(target: Path) -> None:
    write_trace(target, make_rows())
    with pytest.raises(UsageError, match="is an input of this command"):
        check_target(target, replace_existing=True, inputs=[target])


@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_another_run_writes_is_refused(force: bool, target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        for attempt in (check_target, partial(TraceFile, metadata=BEFORE)):
            with pytest.raises(UsageError) as caught:
                attempt(target, replace_existing=force)
            assert caught.value.message.startswith(f"Another run (process {os.getpid()}, since "), (
                caught.value.message
            )
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not partial_folder(target).exists()


@pytest.mark.usefixtures("small_parts")
def test_without_locks_the_rows_of_two_runs_are_not_mixed_either(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: int) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def write_while_another_does() -> None:
        with TraceFile(target, metadata=BEFORE) as first:
            first.write(make_rows(seed=1))
            with TraceFile(target, metadata=BEFORE, replace_existing=True) as second:
                second.write(make_rows(seed=2))
                first.finish(AFTER)

    monkeypatch.setattr("fcntl.flock", deny)
    with pytest.raises(UsageError, match="Another run wrote to"):
        write_while_another_does()
    assert not target.exists()


def test_a_run_that_ended_early_holds_nothing(target: Path) -> None:
    interrupt(target, make_rows())
    interrupt(target, replace_existing=True)
    interrupt(target, make_rows())
    with TraceFile(target, metadata=BEFORE, replace_existing=True) as sink:
        sink.write(make_rows(seed=2))
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == make_rows(seed=2).to_pydict()


def test_a_folder_without_parts_is_in_nobody_s_way(target: Path) -> None:
    """The state after a kill before the first part."""
    folder = partial_folder(target)
    folder.mkdir()
    (folder / "_lock").write_text('{"pid": 1, "host": "a", "since": "2026"}')
    (folder / "part-00000.unfinished").touch()
    write_trace(target, make_rows())
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not folder.exists()
