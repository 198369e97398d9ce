"""A report appears whole or not at all, and replaces nothing unasked."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from moetool.cli.output import check_report_path, print_or_write
from moetool.errors import UsageError


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
