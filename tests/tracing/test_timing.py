"""The clock of a run adds up the time of each stage, whichever threads are in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.tracing.timing import Stage, StageClock


class FakeTime:
    """A time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(time, "perf_counter", fake.perf_counter)
    return fake


def test_stages_one_after_another_add_up(fake_time: FakeTime) -> None:
    clock = StageClock()
    fake_time.now_s += 1
    for seconds in (2, 3):
        with clock.measure(Stage.FORWARD):
            fake_time.now_s += seconds
        with clock.measure(Stage.WRITE):
            fake_time.now_s += 0.5
    timings = clock.read(num_tokens=50)
    assert timings.elapsed_s == 7
    assert timings.stages_s == dict.fromkeys(map(str, Stage), 0) | {
        "forward": 5,
        "write": 1,
        "other": 1,
    }
    assert timings.shares["forward"] == 5 / 7
    assert timings.forward_tokens_per_s == 10


def test_without_forward_passes_there_is_no_speed(fake_time: FakeTime) -> None:
    timings = StageClock().read(num_tokens=0)
    assert timings.forward_tokens_per_s is None
    assert timings.shares == {}
    assert fake_time.now_s == 100


def test_a_stage_that_fails_counts_until_then(fake_time: FakeTime) -> None:
    clock = StageClock()

    def fail() -> None:
        with clock.measure(Stage.LOAD):
            fake_time.now_s += 4
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert clock.read(num_tokens=0).stages_s["load"] == 4


@given(
    st.lists(st.tuples(st.sampled_from(Stage), st.integers(0, 20), st.integers(0, 20)), max_size=12)
)
def test_time_in_which_stages_overlap_counts_once_for_each_stage(
    spans: list[tuple[Stage, int, int]],
) -> None:
    spans = [(stage, min(a, b), max(a, b)) for stage, a, b in spans]
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeTime()
        patch.setattr(time, "perf_counter", fake.perf_counter)
        clock = StageClock()
        open_blocks: list[tuple[int, AbstractContextManager[None]]] = []
        for second in range(21):
            fake.now_s = 100.0 + second
            for _, block in [each for each in open_blocks if each[0] == second]:
                block.__exit__(None, None, None)
            for stage, start, end in spans:
                if start == second < end:
                    block = clock.measure(stage)
                    block.__enter__()
                    open_blocks.append((end, block))
        timings = clock.read(num_tokens=0)

    def covered(stages: Iterator[Stage]) -> int:
        wanted = set(stages)
        held = (range(start, end) for stage, start, end in spans if stage in wanted)
        return len({second for each in held for second in each})

    by_stage = {stage.value: covered(iter([stage])) for stage in Stage}
    assert timings.stages_s == {**by_stage, "other": 20 - covered(iter(Stage))}


def test_threads_share_a_clock() -> None:
    clock = StageClock()
    together = Barrier(4)

    def work(_: int) -> None:
        with clock.measure(Stage.BUILD):
            together.wait()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    timings = clock.read(num_tokens=0)
    assert 0 < timings.stages_s["build"] <= timings.elapsed_s
