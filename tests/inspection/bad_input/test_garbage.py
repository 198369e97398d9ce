"""Searches for garbage are rare while skeletons are made, and as before in everything else."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moetool
from moetool import __main__ as command
from moetool.errors import InputError
from moetool.memory.scenario import Scenario
from moetool.process.garbage import seldom_collected
from tests.memory.saved_configs import make_runs, save_config

USUAL = (700, 10, 10)


@pytest.fixture(autouse=True)
def usual_thresholds() -> Iterator[None]:
    """Search for garbage as often as Python does by itself."""
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*before)


def test_searches_are_rare_inside_and_as_before_after_an_error() -> None:
    with seldom_collected():
        assert gc.get_threshold()[0] > 10 * USUAL[0]
        with contextlib.suppress(ZeroDivisionError), seldom_collected():
            raise ZeroDivisionError
        assert gc.get_threshold()[0] > 10 * USUAL[0]
    assert gc.get_threshold() == USUAL
    with contextlib.suppress(ZeroDivisionError), seldom_collected():
        raise ZeroDivisionError
    assert gc.get_threshold() == USUAL


@pytest.mark.parametrize("own", [(0, 10, 10), (80_000, 30, 30)], ids=["switched off", "rarer"])
def test_an_own_setting_is_kept(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    with seldom_collected():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_the_last_thread_restores_the_setting() -> None:
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay() -> None:
        with seldom_collected():
            is_inside.set()
            may_leave.wait(10)

    thread = threading.Thread(target=stay)
    with seldom_collected():
        thread.start()
        assert is_inside.wait(10)
    assert gc.get_threshold() != USUAL
    may_leave.set()
    thread.join()
    assert gc.get_threshold() == USUAL


def test_a_command_leaves_the_setting_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("moetool.cli.main.main", lambda: seen.append(gc.get_threshold()))
    monkeypatch.setattr(command, "catch_interrupts", lambda: None)
    monkeypatch.setattr(command, "end_interrupts", lambda: None)
    command.main()
    assert seen == [USUAL]


def test_building_and_simulating_search_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(*_: Any, **__: Any) -> None:
        seen.append(gc.get_threshold()[0])
        raise InputError("Seen.", hint="")

    model = save_config("olmoe", tmp_path)
    monkeypatch.setattr("moetool.inspection.sources.from_skeleton.build_whole_skeleton", stop)
    with pytest.raises(InputError, match="Seen"):
        moetool.inspect_model(model)
    monkeypatch.setattr("moetool.memory.simulated.model_runs.record_scenario", stop)
    with pytest.raises(InputError, match="Seen"):
        make_runs(model).simulate(Scenario(num_prompt_tokens=4, num_new_tokens=2, dtype="float32"))
    assert len(seen) == 2
    assert min(seen) > 10 * USUAL[0]
    assert gc.get_threshold() == USUAL
