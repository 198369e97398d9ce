"""The process that simulates, without torch: what it answers, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import moetool
from moetool.catalogue.gpus import find_gpu
from moetool.errors import OutOfMemoryError
from moetool.memory.fitting import worker
from moetool.memory.fitting.fact_cache import FactCache
from moetool.memory.fitting.known_facts import RunFacts
from moetool.memory.fitting.model_fit import ModelFit
from moetool.memory.fitting.worker import FitTask, answer
from moetool.memory.fitting.workers import work_in_processes
from moetool.memory.scenario import Scenario
from moetool.process.worker import WorkerError

# Runs the real loop with an answer of the test's, and without torch.
WORKER = """
import os, sys, time, types
sys.modules["torch"] = types.SimpleNamespace(set_num_threads=lambda _: None)
from moetool.memory.fitting import worker
def answer(task):
    {body}
worker.answer = answer
worker.main()
"""
# Starts a process that works for long, and prints its id.
PARENT = """
import sys
from moetool.memory.fitting.workers import work_in_processes
for _, pid in work_in_processes([1, 2], (sys.executable, "-c", {worker!r}), num_processes=1):
    print(pid, flush=True)
"""
PATIENCE_S = 60
GPU = find_gpu("10GiB")


def make_worker(body: str) -> tuple[str, ...]:
    return (sys.executable, "-c", WORKER.format(body=body))


def test_a_worker_answers_every_task() -> None:
    working = work_in_processes([1, 2, 3], make_worker("return 2 * task"), num_processes=1)
    assert dict(working) == {0: 2, 1: 4, 2: 6}


def test_what_a_library_prints_is_not_an_answer() -> None:
    command = make_worker("print('noise'); return 2 * task")
    assert dict(work_in_processes([1, 2], command, num_processes=1)) == {0: 2, 1: 4}


def test_a_bug_is_raised_with_its_traceback() -> None:
    working = work_in_processes([1], make_worker("return task.gpu"), num_processes=1)
    with pytest.raises(WorkerError, match=r"in answer\n(.|\n)*AttributeError: 'int' object"):
        list(working)


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_task(tmp_path: Path) -> None:
    code = make_worker("time.sleep(0 if task == 1 else 1000); return os.getpid()")[2]
    parent = subprocess.Popen(
        (sys.executable, "-c", PARENT.format(worker=code)),
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(moetool.__file__).parent.parent)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + PATIENCE_S
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(pid)
    finally:
        parent.stdout.close()
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Return whether a process runs. One that has ended may wait for whoever adopted it."""
    found = subprocess.run(
        ("ps", "-o", "stat=", "-p", str(pid)), stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    return bool(found) and not found.startswith("Z")


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfMemoryError("It is too large.", hint="Use less.")]
)
def test_running_out_of_memory_is_a_reason_that_is_not_kept(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    cache = FactCache(tmp_path)
    monkeypatch.setattr(worker, "_open", refuse)
    found = answer(FitTask("olmoe-1b-7b", GPU, Scenario(), (), tmp_path))
    assert found.fits is None
    assert found.reason in (
        "This machine has too little memory to simulate it.",
        "It is too large.",
    )
    assert found == ModelFit("olmoe-1b-7b", reason=found.reason)
    assert cache.read_size("olmoe-1b-7b") is None
    assert cache.read_facts("olmoe-1b-7b", GPU, Scenario()) in (None, RunFacts())
