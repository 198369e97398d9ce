"""Replays in a second process, which may be killed or fail to start."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from moetool.simulation.memory.replay import second_process
from moetool.simulation.memory.replay.second_process import SecondProcess, is_worthwhile
from moetool.simulation.memory.replay.timeline_replay import TimelineReplay
from tests.simulation.memory.memory_runs import make_timeline

MIB = 2**20
REPLAYS = [
    TimelineReplay(make_timeline(events, call_ends=[2, 4], cache=[{1: 3 * MIB}] * 2), [1000, size])
    for size in (600, 5 * MIB)
    for events in [[(0, size), (1, 3 * MIB), (0, -1), (2, 700)]]
]


def test_a_second_process_replays_as_this_one_does() -> None:
    with SecondProcess() as second:
        pending = [second.start(each) for each in REPLAYS]
        # The last one may not have begun, and is then replayed here.
        assert [each.finish() for each in pending] == [each(None) for each in REPLAYS]
        assert second.start(REPLAYS[0])._answer.result() == REPLAYS[0](None)


def test_a_second_process_needs_no_torch() -> None:
    code = "import sys, moetool.simulation.memory.replay.worker; print('torch' in sys.modules)"
    printed = subprocess.run((sys.executable, "-c", code), stdout=subprocess.PIPE, check=True)
    assert printed.stdout == b"False\n"


@pytest.mark.parametrize(
    "command",
    [
        ("/nonexistent",),
        (sys.executable, "-c", "raise SystemExit('no memory')"),
        (sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})"),
    ],
)
def test_a_run_is_replayed_here_if_the_process_fails(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_process, "WORKER", command)
    with SecondProcess() as second:
        for replay in REPLAYS:
            assert second.start(replay).finish() == replay(None)


def test_leaving_ends_a_process_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    num_threads = threading.active_count()
    sleeping = "import time; time.sleep(1000)"
    monkeypatch.setattr(second_process, "WORKER", (sys.executable, "-c", sleeping))
    with SecondProcess() as second:
        pending = second.start(REPLAYS[0])
        while second._worker is None:
            time.sleep(0.01)
    assert second._worker is not None
    assert not second._worker.is_running
    assert threading.active_count() == num_threads
    assert pending.finish() == REPLAYS[0](None)


def test_a_process_that_never_began_has_nothing_to_end() -> None:
    with SecondProcess() as second:
        pass
    assert second._worker is None


def test_it_takes_a_core_and_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_process, "count_cores", lambda: 2)
    assert is_worthwhile()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not is_worthwhile()
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(second_process, "count_cores", lambda: 1)
    assert not is_worthwhile()
