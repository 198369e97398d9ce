"""A report appears whole or not at all, and replaces nothing unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.report.files import write_report


@pytest.mark.parametrize("output", [None, Path("-")], ids=["none", "dash"])
def test_without_a_file_a_report_goes_to_stdout(
    output: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report("größer\n", output, replace_existing=False)
    assert capsys.readouterr().out == "größer\n"


def test_a_report_is_written_to_a_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_report("größer\n", tmp_path / "report.txt", replace_existing=False)
    assert (tmp_path / "report.txt").read_bytes() == "größer\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_an_existing_report_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UsageError, match="exists") as caught:
        write_report("new", path, replace_existing=False)
    assert "--force" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "old"
    write_report("new", path, replace_existing=True)
    assert path.read_text(encoding="utf-8") == "new"


def test_a_report_that_can_not_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Can't write"):
        write_report("new", tmp_path / "missing" / "report.txt", replace_existing=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="Can't write"):
        write_report("new", tmp_path / "folder", replace_existing=True)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
