"""Runs that go on where an earlier one ended, at whatever step that was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import ResumableInterrupt, UsageError
from moetool.trace.companions import probabilities_path
from moetool.trace.reading.reader import read_trace
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import BEFORE, break_off, columns_of, make_rows, write_trace
from tests.trace.writing.runs import AFTER, names_in
from tests.trace.writing.unfinished.pieces import IDENTITY, make_window

WINDOWS = [make_window(index) for index in range(3)]
ROWS = pa.concat_tables([rows for window in WINDOWS for rows in window.rows]).to_pydict()
SCORES = pa.concat_tables([each for window in WINDOWS for each in window.probabilities]).to_pydict()
# The middle window is slow: its batches are kept.
BATCHES = {1: [(0, 2), (1, 3)]}


class Killed(BaseException):
    """The process ends here."""


def trace(target: Path, *, resume: bool = False, step: Callable[[], None] = lambda: None) -> None:
    """Write the windows that are not there yet, with a step after each call of the sink."""
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY, resume=resume) as sink:
        finished = sink.list_finished()
        for window in WINDOWS:
            if window.index in finished:
                continue
            kept = sink.kept_batches(window.index)
            for index, prompts in enumerate(BATCHES.get(window.index, [])):
                if index in kept:
                    assert (
                        kept[index].rows.to_pydict()
                        == window.batch(index, prompts).rows.to_pydict()
                    )
                    continue
                sink.keep_batch(window.batch(index, prompts))
                step()
            for piece in window.cut(1 + window.index):
                encoded = sink.encode(piece)
                step()
                sink.commit(encoded)
                step()
        texts = b"".join(each.read_texts() for each in sink.list_finished().values())
        sums = [each.read_saliency() for each in sink.list_finished().values()]
        assert texts == b"".join(window.cut(1)[0].texts or b"" for window in WINDOWS)
        assert sums == [window.cut(1)[0].saliency for window in WINDOWS]
        sink.finish(AFTER)


class Kill:
    """Ends a run after a number of steps, leaving the files as a killed process would."""

    def __init__(self, after: int, copy_to: Path, target: Path) -> None:
        self.left, self.copy_to, self.target = after, copy_to, target

    def __call__(self) -> None:
        self.left -= 1
        # Only once: what this process then does to leave is not part of the copy.
        if self.left == -1:
            shutil.copytree(self.target.parent, self.copy_to)
            raise Killed


def kill_and_look(target: Path, copy_to: Path, *, after: int, resume: bool) -> bool:
    """Kill a run after a number of steps; return whether it ended before that."""
    try:
        trace(target, resume=resume, step=Kill(after, copy_to, target))
    except Killed:
        return False
    return True


def check_whole(target: Path) -> None:
    assert columns_of(read_trace(target)) == ROWS
    assert pq.read_table(probabilities_path(target)).to_pydict() == SCORES
    assert not partial_folder(target).exists()


def test_a_run_killed_again_and_again_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run0"
    folder.mkdir()
    for number in range(1, 100):
        copy = tmp_path / f"run{number}"
        # With fewer steps, the pieces of the last window are written again and again.
        if kill_and_look(folder / "t.parquet", copy, after=5, resume=number > 1):
            break
        folder = copy
    assert number == 4
    check_whole(folder / "t.parquet")


class Snapshots:
    """Copies a folder whenever its list of files is new, as a kill would leave it."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies = folder, copies
        self.seen: dict[frozenset[str], Path] = {}

    def __call__(self) -> None:
        names = frozenset(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))
        # The last piece of the slow window, until the first one of the next.
        is_slow = any("part-00001-001" in name for name in names)
        if is_slow and names not in self.seen and not any("part-00002" in name for name in names):
            self.seen[names] = self.copies / str(len(self.seen))
            shutil.copytree(self.folder, self.seen[names])


def test_a_run_killed_around_any_change_of_a_file_goes_on_to_the_same_rows(
    target: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most of all those that give the pieces of a window the place of its batches.
    look = Snapshots(target.parent, tmp_path_factory.mktemp("killed"))
    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "link")):
        real = getattr(owner, name)

        def operate(*args: Any, real: Any = real, **options: Any) -> None:
            look()
            real(*args, **options)
            look()

        monkeypatch.setattr(owner, name, operate)
    trace(target)
    monkeypatch.undo()
    num_resumed = 0
    for left in (folder / target.name for folder in look.seen.values()):
        parts = partial_folder(left)
        seen = read_trace(parts)
        assert len(seen.drop_duplicates()) == len(seen) > 0
        assert not left.exists()
        trace(left, resume=True)
        check_whole(left)
        num_resumed += 1
    assert num_resumed > 15


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "trace.parquet"


@pytest.fixture
def interrupted(target: Path) -> Path:
    """A target of which two windows are there."""
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupt(target)
    assert isinstance(caught.value, ResumableInterrupt)
    assert "--resume" in caught.value.hint
    assert str(partial_folder(target)) in caught.value.__notes__[0]
    return target


def interrupt(target: Path, *, replace_existing: bool = False) -> None:
    with TraceFile(
        target, metadata=BEFORE, identity=IDENTITY, replace_existing=replace_existing
    ) as sink:
        for window in WINDOWS[:2]:
            for piece in window.cut(1):
                sink.commit(sink.encode(piece))
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "differ in model: huge here, tiny there."),
        ({"batch size": 4}, "differ in batch size: 4 here, 8 there."),
        ({"layers": [1, 2]}, "differ in layers: [1, 2] here, none there."),
        ({"new option": 1}, "differ in new option: 1 here, none there."),
    ],
)
def test_another_run_is_refused_with_the_first_difference(
    interrupted: Path, changes: dict[str, Any], message: str
) -> None:
    before = names_in(partial_folder(interrupted))
    identity = RunIdentity({**IDENTITY.values, **changes})
    with pytest.raises(UsageError) as caught:
        TraceFile(interrupted, metadata=BEFORE, identity=identity, resume=True)
    assert caught.value.message.endswith(message)
    assert "--force" in caught.value.hint
    assert names_in(partial_folder(interrupted)) == before
    trace(interrupted, resume=True)
    check_whole(interrupted)


def test_nothing_to_resume_is_refused(target: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to resume") as caught:
        trace(target, resume=True)
    assert caught.value.hint == "Leave out --resume."
    assert names_in(target.parent) == []


def test_a_trace_that_is_finished_is_said_to_be(target: Path) -> None:
    trace(target)
    before = target.read_bytes()
    with pytest.raises(UsageError, match=r"is finished, and no run left .* there is nothing"):
        trace(target, resume=True)
    assert target.read_bytes() == before


def test_a_folder_in_which_nothing_was_closed_is_resumed_from_the_start(target: Path) -> None:
    partial_folder(target).mkdir()
    (partial_folder(target) / "_lock").touch()
    trace(target, resume=True)
    check_whole(target)


def test_a_run_that_another_process_holds_is_refused(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as first:
        first.commit(first.encode(*WINDOWS[0].cut(1)))
        with pytest.raises(UsageError, match=r"Another run .* is writing"):
            trace(target, resume=True)
        for window in WINDOWS[1:]:
            first.commit(first.encode(*window.cut(1)))
        first.finish(AFTER)
    check_whole(target)


def test_rows_that_were_not_written_in_pieces_can_t_be_resumed(target: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(target, make_rows())
    with pytest.raises(UsageError, match="does not state how its run was made"):
        trace(target, resume=True)
    assert columns_of(read_trace(partial_folder(target))) == make_rows().to_pydict()


def test_torn_parts_are_dropped(interrupted: Path) -> None:
    folder = partial_folder(interrupted)
    (folder / "part-00000-000.parquet").write_bytes(b"")
    (folder / "_part-00002-000.unfinished").write_bytes(b"PAR1")
    (folder / "_texts" / "part-00002-001.jsonl").write_bytes(b"{}")
    trace(interrupted, resume=True)
    check_whole(interrupted)


@pytest.mark.parametrize("name", ["_texts", "_saliency", "_probabilities"])
def test_a_window_lacks_nothing_that_belongs_to_it(interrupted: Path, name: str) -> None:
    shutil.rmtree(partial_folder(interrupted) / name)
    trace(interrupted, resume=True)
    check_whole(interrupted)


def test_an_interrupted_resumption_keeps_what_was_there(interrupted: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        TraceFile(interrupted, metadata=BEFORE, identity=IDENTITY, resume=True),
    ):
        raise KeyboardInterrupt
    assert len(read_trace(partial_folder(interrupted))) == len(ROWS["prompt_id"]) * 2 // 3
    trace(interrupted, resume=True)
    check_whole(interrupted)


def test_force_discards_pieces(interrupted: Path) -> None:
    write_trace(interrupted, make_rows(), replace_existing=True)
    assert columns_of(read_trace(interrupted)) == make_rows().to_pydict()
    assert names_in(interrupted.parent) == [interrupted.name]


def test_a_run_that_lacks_its_last_window_is_not_finished(target: Path) -> None:
    identity = RunIdentity({**IDENTITY.values, "number of windows": 3})
    with TraceFile(target, metadata=BEFORE, identity=identity) as sink:
        for window in WINDOWS[:2]:
            sink.commit(sink.encode(*window.cut(1)))
        with pytest.raises(UsageError, match=r"part-00002-000.parquet' was removed or changed"):
            sink.finish(replace(AFTER, num_prompts=12))
    assert not target.exists()


def test_a_resumed_run_replaces_only_what_the_unfinished_one_would_have(target: Path) -> None:
    write_trace(target, make_rows(seed=9))
    with pytest.raises(KeyboardInterrupt):
        interrupt(target, replace_existing=True)
    trace(target, resume=True)
    check_whole(target)


def test_a_trace_that_appeared_since_is_not_replaced(interrupted: Path) -> None:
    write_trace(interrupted.with_stem("other"), make_rows(seed=9)).rename(interrupted)
    with pytest.raises(UsageError, match="exists, next to the parts of an unfinished run"):
        trace(interrupted, resume=True)
    assert columns_of(read_trace(interrupted)) == make_rows(seed=9).to_pydict()
    interrupted.unlink()
    trace(interrupted, resume=True)
    check_whole(interrupted)


def test_a_killed_process_loses_no_row_that_was_taken(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.trace.writing.unfinished.killing", str(tmp_path), "25"]
    completed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    seen = json.loads(completed.stdout)
    assert seen["kills"] == 25
    assert seen["left_parts"] > 0
    assert seen["traces"] > 0
