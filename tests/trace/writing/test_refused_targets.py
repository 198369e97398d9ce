"""Targets that can't be written are refused before a run."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path, sidecar_path
from moetool.trace.writing.targets import check_target
from tests.trace.examples import (
    make_rows,
)
from tests.trace.writing.runs import interrupt, names_in, refusal, write_with_probabilities


def test_an_existing_trace_is_not_replaced_without_force(target: Path) -> None:
    target.touch()
    assert refusal(target) == f"'{target}' exists."
    check_target(target, replace_existing=True)


def test_existing_probabilities_are_not_replaced_without_force(target: Path) -> None:
    write_with_probabilities(target)
    target.unlink()
    sidecar_path(target).unlink(missing_ok=True)
    assert refusal(target) == f"'{probabilities_path(target)}' exists."
    check_target(target, replace_existing=True)


def test_parts_of_an_unfinished_run_are_not_discarded_without_force(target: Path) -> None:
    interrupt(target, make_rows())
    assert "unfinished run" in refusal(target)
    check_target(target, replace_existing=True)


def test_a_name_of_no_known_format_is_refused(tmp_path: Path) -> None:
    assert "format" in refusal(tmp_path / "trace.json")


def test_a_folder_is_refused_as_a_target(target: Path) -> None:
    target.mkdir()
    assert "is a folder" in refusal(target)


def test_a_target_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "missing" / "trace.parquet")


@pytest.mark.parametrize(
    ("suffix", "with_probabilities", "spare"),
    [
        (".csv", False, ".meta.json"),
        (".parquet", False, ".partial"),
        (".parquet", True, ".probabilities"),
    ],
)
def test_a_name_that_leaves_no_room_for_what_goes_with_it_is_refused_early(
    suffix: str, with_probabilities: bool, spare: str, tmp_path: Path
) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(suffix) - len(spare)
    check = partial(check_target, replace_existing=False, with_probabilities=with_probabilities)
    check(tmp_path / f"{'n' * longest}{suffix}")
    with pytest.raises(UsageError, match=r"Can't write .*: File name too long"):
        check(tmp_path / f"{'n' * (longest + 1)}{suffix}")


def test_the_check_leaves_no_mark(target: Path) -> None:
    check_target(target, replace_existing=False)
    assert names_in(target.parent) == []
