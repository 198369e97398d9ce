"""Locks with one holder at a time, which end with their holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from moetool.output.locks import open_locked, refuse_as_held, write_holder

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from moetool.output.locks import open_locked, write_holder\n"
    "file = open_locked(Path(sys.argv[1]))\n"
    "write_holder(file)\n"
    "print('held', flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_lock_is_held_by_one_and_free_again_when_closed(path: Path) -> None:
    with open_locked(path), pytest.raises(BlockingIOError):
        open_locked(path)
    open_locked(path).close()


def test_a_lock_names_its_holder_and_ends_with_a_kill(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(BlockingIOError):
                open_locked(path)
            said = refuse_as_held(Path("trace.csv"), lock=path).message
        finally:
            holder.kill()
    assert said.startswith(f"Another run (process {holder.pid}, since 20")
    assert said.endswith(") is writing 'trace.csv'.")
    open_locked(path).close()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[1]", b"{}", b'{"pid": "x"}', b"\xff", b'{"pid": 1e999}', b"[" * 100_000],
)
def test_a_holder_that_can_not_be_read_is_not_named(content: bytes | None, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    assert refuse_as_held(Path("a"), lock=path).message == "Another run is writing 'a'."


def test_a_holder_on_another_machine_is_named_with_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_locked(path) as file:
        write_holder(file)
        monkeypatch.setattr("platform.node", lambda: "elsewhere")
        assert " on " in refuse_as_held(Path("a"), lock=path).message


def test_a_lock_is_not_opened_through_a_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match="symbolic links"):
        open_locked(path)
    assert not path.with_name("elsewhere").exists()


def test_a_file_that_was_removed_before_it_was_locked_is_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that held it ends between the two steps."""
    from moetool.output import locks

    lock = locks._lock
    removed: list[Path] = []

    def remove_and_lock(descriptor: int) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        lock(descriptor)

    monkeypatch.setattr(locks, "_lock", remove_and_lock)
    with open_locked(path) as file:
        assert removed == [path]
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())


def test_a_file_system_without_locks_locks_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: int) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", deny)
    with open_locked(path), open_locked(path):
        pass
