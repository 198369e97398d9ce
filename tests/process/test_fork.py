"""Tasks that a process shares with a copy of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process.started import finish, wait_for, wait_until
from tests.forked import Forks

_CODE = "from tests.process.shared_tasks import {0}\n{0}()\n"


@pytest.fixture(scope="module")
def facts(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The facts of each way in which tasks end, by its name, found in one process."""
    folder = tmp_path_factory.mktemp("tasks")
    with forks.start(_CODE.format("main"), folder, environment=os.environ) as process:
        completed = finish(process)
    assert completed.returncode == 0, completed.stderr
    found: dict[str, Any] = json.loads(completed.stdout)
    return found


def test_a_process_works_while_it_waits_for_its_copy(facts: dict[str, Any]) -> None:
    assert facts["both"] == ["copy", "this"]


def test_a_copy_does_not_wait_for_its_answers_to_be_taken(facts: dict[str, Any]) -> None:
    assert facts["long"] == [1 << 20, "copy", False, True]


@pytest.mark.parametrize("end", ["killed", "failed", "unpicklable"])
def test_what_a_copy_leaves_is_done_by_the_process(facts: dict[str, Any], end: str) -> None:
    assert facts[end] == "this"


def test_an_error_is_raised_where_the_answer_is_taken(facts: dict[str, Any]) -> None:
    assert facts["error"] == "raised"
    assert facts["other error"] == ["copy", "raised"]


def test_signals_end_a_copy_unless_they_are_ignored(facts: dict[str, Any]) -> None:
    assert facts["handlers"] == [True, False, True]


def test_only_a_process_without_other_threads_is_copied(facts: dict[str, Any]) -> None:
    assert facts["threads"] == [False, True]


def test_a_process_on_one_core_is_not_copied(facts: dict[str, Any]) -> None:
    assert facts["one core"] is False


def test_a_process_that_ignores_ends_of_others_is_not_copied(facts: dict[str, Any]) -> None:
    assert facts["ends ignored"] is False


def test_a_copy_ends_with_the_block(facts: dict[str, Any]) -> None:
    assert facts["block"] == "no process is left"


def test_a_copy_ends_with_its_process(forks: Forks, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    with forks.start(_CODE.format("hold"), file, environment=os.environ) as process:
        wait_for(file, process)
        copy = int(file.read_text())
        assert not has_ended(copy)
        process.kill()
        process.communicate()
        watched = forks.start("import time; time.sleep(600)", environment=os.environ)
        with watched:
            wait_until(lambda: has_ended(copy), watched, "the end of the copy")


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if the system's first process has not noticed."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    return "State:\tZ" in status
