"""A report appears whole or not at all, and replaces nothing unasked."""

from __future__ import annotations

import fcntl
import os
import resource
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from moetool.cli.output import check_report_path, print_or_write, see_output, see_terminal
from moetool.errors import UsageError
from moetool.report.renderer import View


@pytest.mark.parametrize("output", [None, Path("-")], ids=["none", "dash"])
def test_without_a_file_a_report_goes_to_stdout(
    output: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_or_write("größer\n", output, force=False)
    assert capsys.readouterr().out == "größer\n"


def test_a_report_is_written_to_a_file_and_nothing_else(tmp_path: Path) -> None:
    print_or_write("größer\n", tmp_path / "report.txt", force=False)
    assert (tmp_path / "report.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_parts_of_a_report_are_written_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_or_write(iter(["grö", "", "ßer\n"]), tmp_path / "report.txt", force=False)
    assert (tmp_path / "report.txt").read_bytes() == "größer\n".encode()
    print_or_write(iter(["grö", "ßer\n"]), None, force=False)
    assert capsys.readouterr().out == "größer\n"


def test_a_report_whose_parts_fail_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Iterator[str]:
        yield "first"
        raise RuntimeError("second")

    with pytest.raises(RuntimeError, match="second"):
        print_or_write(fail(), tmp_path / "report.txt", force=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_report_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UsageError, match="exists") as caught:
        print_or_write("new", path, force=False)
    assert "--force" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "old"
    print_or_write("new", path, force=True)
    assert path.read_text(encoding="utf-8") == "new"


def test_a_report_that_can_not_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        print_or_write("new", tmp_path / "missing" / "report.txt", force=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        print_or_write("new", tmp_path / "folder", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_the_old_report_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old", encoding="utf-8")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"Can't write '.*report.txt': File too large"):
            print_or_write("new" * 1000, path, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_through_a_link_replaces_the_link(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere.txt", tmp_path / "report.txt"
    elsewhere.write_text("old", encoding="utf-8")
    link.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="exists"):
        print_or_write("new", link, force=False)
    print_or_write("new", link, force=True)
    assert elsewhere.read_text(encoding="utf-8") == "old"
    assert not link.is_symlink()
    assert link.read_text(encoding="utf-8") == "new"


def test_a_link_of_a_name_once_used_on_the_way_is_not_followed(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere.json", tmp_path / ".report.json.unfinished"
    elsewhere.write_text("old", encoding="utf-8")
    link.symlink_to(elsewhere)
    print_or_write("new", tmp_path / "report.json", force=False)
    assert elsewhere.read_text(encoding="utf-8") == "old"
    assert link.is_symlink()


def test_a_report_never_replaces_what_it_is_made_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UsageError, match="is an input"):
        check_report_path(path, force=True, inputs=[path])
    assert path.read_text(encoding="utf-8") == "old"


# The terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A terminal of 100 columns, in an environment that says nothing about it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    controller, end = os.openpty()
    set_columns(end, 100)
    with open(end, "w", encoding="utf-8") as stream:
        yield stream
    os.close(controller)


def set_columns(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


@pytest.mark.parametrize(
    ("columns", "width"), [(0, 80), (40, 60), (80, 80), (120, 120), (300, 200)]
)
def test_a_report_is_as_wide_as_its_terminal_within_limits(
    columns: int, width: int, terminal: TextIO
) -> None:
    set_columns(terminal.fileno(), columns)
    assert see_terminal(terminal) == View(width=width, has_color=True)


@pytest.mark.parametrize(
    ("name", "value", "view"),
    [
        ("NO_COLOR", "1", View(width=100)),
        ("TERM", "dumb", View(width=100)),
        ("COLUMNS", "120", View(width=120, has_color=True)),
        ("COLUMNS", "many", View(width=100, has_color=True)),
    ],
)
def test_the_environment_decides_on_colour_and_width(
    name: str, value: str, view: View, terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert see_terminal(terminal) == view


def test_a_file_has_neither_width_nor_colour(
    tmp_path: Path, terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", terminal)
    assert see_output(None) == View(width=100, has_color=True)
    assert see_output(tmp_path / "report.txt") == View()
    with (tmp_path / "stream.txt").open("w", encoding="utf-8") as stream:
        assert see_terminal(stream) == View()
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert see_terminal(stream) == View(has_color=True)
