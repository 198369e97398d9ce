"""Files that appear complete or not at all, and files that are never replaced."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from moetool.errors import UsageError
from moetool.output.targets import (
    check_target_file,
    new_file,
    put_in_place,
    saying_what_failed,
    write_file,
)

OLD, NEW = b"old", b"new"


def refusal(target: Path, *, inputs: tuple[Path, ...] = ()) -> str:
    """Return why a target is refused even if it may be replaced."""
    with pytest.raises(UsageError) as caught:
        check_target_file(target, replace_existing=True, inputs=inputs)
    return caught.value.message


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_and_nothing_else(tmp_path: Path) -> None:
    write_file(NEW, tmp_path / "file", replace_existing=False)
    assert contents_of(tmp_path) == {"file": NEW}


def test_a_name_may_have_the_greatest_length(tmp_path: Path) -> None:
    name = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    check_target_file(tmp_path / name, replace_existing=False)
    write_file(NEW, tmp_path / name, replace_existing=False)
    assert contents_of(tmp_path) == {name: NEW}


def test_a_longer_name_is_refused(tmp_path: Path) -> None:
    assert "name too long" in refusal(tmp_path / ("n" * 300))


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(NEW, tmp_path / "file", replace_existing=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_check_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    others = {f".file.{word}": OLD for word in ("probe", "unfinished")}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    check_target_file(tmp_path / "file", replace_existing=False)
    write_file(NEW, tmp_path / "file", replace_existing=False)
    assert contents_of(tmp_path) == {"file": NEW, **others}


def test_a_link_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.write_bytes(OLD)
    link.symlink_to(elsewhere)
    check_target_file(link, replace_existing=True)
    write_file(NEW, link, replace_existing=True)
    assert not link.is_symlink()
    assert contents_of(tmp_path) == {"elsewhere": OLD, "link": NEW}


@pytest.mark.parametrize("leads_to", ["elsewhere", "nowhere"])
def test_a_link_counts_as_existing(leads_to: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(OLD)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / leads_to)
    with pytest.raises(UsageError, match="exists"):
        check_target_file(link, replace_existing=False)
    with pytest.raises(UsageError, match="exists"):
        write_file(NEW, link, replace_existing=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]
    assert (tmp_path / "elsewhere").read_bytes() == OLD


def test_a_file_under_two_names_is_replaced_under_one(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(OLD)
    os.link(tmp_path / "one", tmp_path / "other")
    write_file(NEW, tmp_path / "one", replace_existing=True)
    assert contents_of(tmp_path) == {"one": NEW, "other": OLD}


def test_what_appears_at_the_last_moment_is_kept(tmp_path: Path) -> None:
    with new_file(tmp_path / "unfinished") as file:
        file.write(NEW)
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(UsageError, match="exists"):
        put_in_place(tmp_path / "unfinished", tmp_path / "file", replace_existing=False)
    assert contents_of(tmp_path) == {"file": OLD, "unfinished": NEW}


@pytest.mark.parametrize("is_there", [False, True])
def test_without_hard_links_nothing_is_replaced_either(
    is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: Path) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", deny)
    if is_there:
        (tmp_path / "file").write_bytes(OLD)
        with pytest.raises(UsageError, match="exists"):
            write_file(NEW, tmp_path / "file", replace_existing=False)
    else:
        write_file(NEW, tmp_path / "file", replace_existing=False)
    assert contents_of(tmp_path) == {"file": OLD if is_there else NEW}


def test_a_new_file_is_never_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), new_file(tmp_path / "link"):
        pass
    assert (tmp_path / "elsewhere").read_bytes() == OLD


def test_a_file_that_breaks_off_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "file"):
        raise KeyboardInterrupt
    assert contents_of(tmp_path) == {}


NOT_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a link to a folder": lambda path: path.symlink_to(path.parent, target_is_directory=True),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to a device": lambda path: path.symlink_to(os.devnull),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("what", NOT_FILES)
def test_what_is_not_a_file_is_never_replaced(what: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    NOT_FILES[what](target)
    before = target.lstat()
    assert f"'{target}'" in refusal(target)
    assert os.path.samestat(target.lstat(), before)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/tty"])
def test_devices_are_refused(device: str) -> None:
    assert refusal(Path(device)) == f"'{device}' is not a regular file."


def test_the_standard_streams_are_refused_whatever_they_are() -> None:
    for name in ("stdout", "stderr"):
        assert refusal(Path(f"/dev/{name}")) in (
            f"'/dev/{name}' is not a regular file.",
            f"'/dev/{name}' is this command's stdout.",
            f"'/dev/{name}' is this command's stderr.",
        )


def test_a_streams_own_file_is_refused(tmp_path: Path) -> None:
    """The case of `moetool … -o /dev/stdout > file`."""
    kept = os.dup(0)
    target = tmp_path / "file"
    try:
        with target.open("wb") as file:
            os.dup2(file.fileno(), 0)
            assert refusal(target) == f"'{target}' is this command's stdin."
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize("kind", ["itself", "hard link", "link", "other spelling"])
def test_an_input_is_never_replaced(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "input", tmp_path / "target"
    path.write_bytes(OLD)
    if kind == "hard link":
        os.link(path, target)
    elif kind == "link":
        target.symlink_to(path)
    else:
        target = path if kind == "itself" else tmp_path / ".." / tmp_path.name / "input"
    assert refusal(target, inputs=(tmp_path / "missing", path)) == (
        f"'{target}' is an input of this command."
    )


@pytest.mark.parametrize("place", ["missing/file", "file/file"])
def test_a_folder_must_be_there(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    assert refusal(tmp_path / place) == f"'{(tmp_path / place).parent}' is not a folder."


def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(**_: Any) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    assert refusal(tmp_path / "file") == f"Can't write to '{tmp_path}': Read-only file system."


def test_a_system_error_is_put_into_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, saying_what_failed(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == f"Can't write '{tmp_path}': No space left on device."
