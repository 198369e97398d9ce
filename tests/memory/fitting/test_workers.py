"""Processes that work on tasks: what they import, and what becomes of those that fail."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from moetool.memory.fitting import workers
from moetool.memory.fitting.workers import choose_num_processes, work_in_processes
from moetool.process.worker import TaskError, WorkerError

GIB = 2**30
# Doubles numbers. It is killed at a negative one, fails at an odd one over 100, and never answers 0.
DOUBLING = """
import os, pickle, signal, sys, time
while True:
    try:
        number = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 0:
        time.sleep(1000)
    if number > 100 and number % 2:
        sys.exit(f"{number} is odd")
    pickle.dump((2 * number, os.getpid()), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
# Answers every task with an error.
REFUSING = """
import pickle, sys
from moetool.process.worker import TaskError
pickle.load(sys.stdin.buffer)
pickle.dump(TaskError("ValueError: it is odd"), sys.stdout.buffer)
sys.stdout.buffer.flush()
"""
# Answers with the value in a module that is only on the path of the process that asks.
IMPORTING = """
import pickle, sys
import only_on_the_path
pickle.load(sys.stdin.buffer)
pickle.dump(only_on_the_path.VALUE, sys.stdout.buffer)
sys.stdout.buffer.flush()
"""


def work(
    tasks: list[Any], *, code: str = DOUBLING, num_processes: int = 2
) -> Generator[tuple[int, Any], None, None]:
    return work_in_processes(tasks, (sys.executable, "-c", code), num_processes=num_processes)


def test_every_task_is_answered_by_few_processes() -> None:
    answers = dict(work(list(range(1, 20))))
    assert {index: answer[0] for index, answer in answers.items()} == {
        index: 2 * (index + 1) for index in range(19)
    }
    assert 1 <= len({pid for _, pid in answers.values()}) <= 2


def test_a_process_that_is_killed_leaves_its_task_unanswered_and_is_replaced() -> None:
    answers = dict(work([1, -1, 2, -1, 3], num_processes=1))
    assert [answers[index] and answers[index][0] for index in range(5)] == [2, None, 4, None, 6]


def test_no_process_outlives_the_generator() -> None:
    working = work([1, 0, 0])
    _, (number, pid) = next(working)
    assert number == 2
    working.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_ends_by_itself_is_an_error_with_its_last_words() -> None:
    with pytest.raises(WorkerError, match=r"exit code 1\.\n101 is odd"):
        list(work([2, 101, 4, 6]))


def test_an_error_that_a_process_answers_is_raised() -> None:
    assert TaskError("ValueError: it is odd").description
    with pytest.raises(WorkerError, match="ValueError: it is odd"):
        list(work([1], code=REFUSING))


def test_a_command_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        list(work_in_processes([1], ("/nonexistent",), num_processes=1))


def test_a_task_that_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(TypeError, match="pickle"):
        list(work([1, threading.Lock(), 2, 3]))


def test_a_process_does_not_import_what_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert [answer[0] for _, answer in work([1])] == [2]


def test_a_process_imports_from_where_its_parent_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_on_the_path.py").write_text("VALUE = 7", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(work([1], code=IMPORTING)) == [(0, 7)]


def test_there_are_no_more_processes_than_tasks_or_cores() -> None:
    assert choose_num_processes(1) == 1
    assert 1 <= choose_num_processes(1000) <= (os.cpu_count() or 1)


def test_there_are_as_many_processes_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for available_bytes, number in ((None, 16), (100 * GIB, 16), (9 * GIB, 4), (1, 1)):
        monkeypatch.setattr(workers, "find_available_bytes", lambda found=available_bytes: found)
        assert choose_num_processes(1000) == number
