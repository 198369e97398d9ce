"""Exchanges between processes, and their ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from torch.distributed import TCPStore

import moetool
from moetool.errors import LostProcessError, UsageError
from moetool.tracing.processes.environment import ProcessPlace
from moetool.tracing.processes.processes import Processes
from tests.tracing.processes.threads import run_in_each


def test_a_single_process_needs_no_others() -> None:
    alone = Processes()
    alone.meet()
    alone.barrier()
    alone.check()
    alone.agree({"--limit": 3})
    assert alone.is_first
    assert not alone.are_several
    assert alone.gather("a") == ["a"]
    assert alone.broadcast("a") == "a"
    alone.close()


def test_values_reach_the_processes_that_they_are_meant_for() -> None:
    # More than the store takes at once.
    large = np.arange(700_000)

    def exchange(processes: Processes) -> tuple[str, list[int], int]:
        said = processes.broadcast(f"from {processes.rank}")
        seen = processes.gather(processes.rank**2)
        processes.barrier()
        sums = [int(array.sum()) for array in processes.gather(large + processes.rank)]
        return said, seen, sum(sums)

    ended = [future.result() for future in run_in_each(3, exchange)]
    assert ended == [
        ("from 0", [0, 1, 4], 3 * int(large.sum()) + 3 * len(large)),
        ("from 0", [], 0),
        ("from 0", [], 0),
    ]


def test_a_barrier_holds_until_the_last_process_comes() -> None:
    late = threading.Event()

    def cross(processes: Processes) -> bool:
        if processes.rank == 1:
            late.set()
        processes.barrier()
        return late.is_set()

    assert [future.result() for future in run_in_each(2, cross)] == [True, True]


def test_a_second_run_of_the_same_processes_sees_nothing_of_the_first() -> None:
    def run_twice(processes: Processes) -> list[int]:
        first = processes.gather(processes.rank)
        processes.close()
        second = processes.gather(processes.rank + 10)
        return [*first, *second]

    assert [future.result() for future in run_in_each(2, run_twice)] == [[0, 1, 10, 11], []]


def test_the_first_difference_is_named_by_all() -> None:
    def agree(processes: Processes) -> None:
        processes.agree({"--limit": 3, "--batch-size": 8 // (1 + processes.rank // 2)})

    ended = run_in_each(3, agree)
    for future in ended:
        with pytest.raises(
            UsageError,
            match=r"Processes differ in --batch-size: process 0 has '8', process 2 has '4'\.",
        ):
            future.result()


def test_versions_must_agree_too(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter(["0.1", "0.2"])
    monkeypatch.setattr("moetool.tracing.processes.processes.version", lambda _: next(versions))
    monkeypatch.setattr("moetool.tracing.processes.processes._LIBRARIES", ("torch",))
    for future in run_in_each(2, lambda processes: processes.agree({})):
        with pytest.raises(UsageError, match="Processes differ in the version of torch"):
            future.result()
    assert moetool.__version__


def test_a_failure_ends_all_and_one_speaks() -> None:
    def run(processes: Processes) -> bool:
        if processes.rank == 1:
            mine = processes.claim_failure(exit_code=3, message="No file.", hint="Look.")
            return mine.rank == processes.rank
        with pytest.raises(LostProcessError) as caught:
            processes.barrier()
        assert caught.value.message == "Process 1 of 3 failed: No file."
        assert caught.value.hint == "Look."
        first = processes.claim_failure(exit_code=1, message="Mine.", hint="None.")
        assert (first.rank, first.exit_code) == (1, 3)
        with pytest.raises(LostProcessError):
            processes.check()
        return first.rank == processes.rank

    assert [future.result() for future in run_in_each(3, run)] == [False, True, False]


def test_a_failure_is_noticed_while_working() -> None:
    def run(processes: Processes) -> None:
        processes.meet()
        if processes.rank == 1:
            processes.claim_failure(exit_code=3, message="No file.", hint="Look.")
            return
        paused = threading.Event()
        while not paused.wait(0.01):
            processes.check()

    first, second = run_in_each(2, run)
    second.result()
    with pytest.raises(LostProcessError, match="Process 1 of 2 failed"):
        first.result()


def test_a_process_that_never_comes_is_named() -> None:
    for absent, sentence in (
        (0, "Process 1 of 2 has found no process 0 at 127.0.0.1:"),
        (1, "Process 1 of 2 has not started within 1 s."),
    ):
        (future,) = run_in_each(
            2, Processes.barrier, absent=frozenset([absent]), start_timeout_s=1.0
        )
        with pytest.raises(UsageError) as caught:
            future.result()
        assert caught.value.message.startswith(sentence)


def test_a_process_that_ends_early_is_named() -> None:
    def run(processes: Processes) -> None:
        processes.meet()
        if processes.is_first:
            processes.barrier()

    first, second = run_in_each(2, run)
    second.result()
    with pytest.raises(LostProcessError, match=r"Process 1 of 2 has ended early\."):
        first.result()


def test_a_process_that_dies_is_named() -> None:
    launcher = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # What a second process leaves there that comes and dies.
    for key, value in (("here/1", "0"), ("beat/1", "0")):
        launcher.set(f"moetool/1/{key}", value)
    place = ProcessPlace(number=2, address="127.0.0.1", port=launcher.port, has_agent=True)
    processes = Processes(place, lost_after_s=1.0)
    with pytest.raises(LostProcessError, match=r"Process 1 of 2 has not answered for 1 s\."):
        processes.barrier()
    processes.close()


def test_a_port_that_is_taken_is_named() -> None:
    taken = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = ProcessPlace(number=2, address="127.0.0.1", port=taken.port)
    with pytest.raises(UsageError, match="Process 0 of 2 can't wait for the others at"):
        Processes(place, start_timeout_s=1.0).meet()
