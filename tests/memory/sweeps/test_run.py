"""Sweeps in several processes: the same results, in the same order, as without them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from moetool.checkpoint.reference import resolve_model
from moetool.errors import InputError, MoetoolError, OutOfMemoryError, UsageError
from moetool.memory.scenario import Scenario
from moetool.memory.sweeps import run, worker
from moetool.memory.sweeps.run import estimate_models
from moetool.memory.sweeps.worker import SweepOptions, SweepTask
from tests.memory.saved_configs import save_config

SCENARIOS = [
    Scenario(batch_size=batch, num_prompt_tokens=prompt, num_new_tokens=2, dtype="float32")
    for batch in (1, 2)
    for prompt in (4, 9)
]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[SweepTask]:
    """The tasks of workers that answer in this process, the last one first."""
    seen: list[SweepTask] = []

    def work(
        tasks: Sequence[SweepTask], _: Sequence[str], *, num_processes: int
    ) -> Generator[tuple[int, Any], None, None]:
        assert num_processes == 2
        seen.extend(tasks)
        for index, task in reversed(list(enumerate(tasks))):
            answer = worker.answer(pickle.loads(pickle.dumps(task)))
            yield index, pickle.loads(pickle.dumps(answer))

    monkeypatch.setattr(run, "work_in_processes", work)
    return seen


def estimate(
    models: Sequence[str],
    scenarios: Sequence[Scenario] = SCENARIOS,
    *,
    num_processes: int,
    clipped_sizes: tuple[str, ...] = (),
) -> list[tuple[str, Any]]:
    """Return each model with its estimates as plain values, or with its error."""
    outcomes: list[tuple[str, Any]] = []
    for name, take in estimate_models(
        [(model, resolve_model(model)) for model in models],
        scenarios,
        SweepOptions(clipped_sizes=clipped_sizes),
        on_progress=lambda _: None,
        num_processes=num_processes,
    ):
        try:
            outcomes.append((name, [each.to_dict() for each in take()]))
        except MoetoolError as error:
            outcomes.append((name, (type(error), error.message, error.hint, error.facts)))
    return outcomes


def test_results_are_those_of_one_process(tasks: list[SweepTask], tmp_path: Path) -> None:
    model = str(save_config("olmoe", tmp_path))
    assert estimate([model], num_processes=2) == estimate([model], num_processes=1)
    assert [(task.first, task.end) for task in tasks] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_errors_are_those_of_one_process(tasks: list[SweepTask], tmp_path: Path) -> None:
    model = str(save_config("olmoe", tmp_path))
    # The last one is past the model's context, which is found before the first one runs.
    scenarios = [SCENARIOS[0], Scenario(num_prompt_tokens=10**6, num_new_tokens=2, dtype="float32")]
    models = [model, model]
    alone = estimate(models, scenarios, num_processes=1)
    assert estimate(models, scenarios, num_processes=2) == alone
    assert [outcome[0] for _, outcome in alone] == [UsageError, UsageError]
    assert len(tasks) == 4


def test_the_first_error_of_a_model_counts() -> None:
    parts = [["an estimate"], InputError("one", hint="a"), InputError("other", hint="b")]
    with pytest.raises(InputError, match="one"):
        run._join(parts)  # type: ignore[arg-type]


def test_a_killed_process_is_an_error_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(
        tasks: Sequence[SweepTask], *_: Any, **__: Any
    ) -> Generator[tuple[int, Any], None, None]:
        for index in range(len(tasks)):
            yield index, None

    monkeypatch.setattr(run, "work_in_processes", work)
    ((name, outcome),) = estimate(["demo"], num_processes=2)
    assert name == "demo"
    assert outcome[0] is OutOfMemoryError
    assert "demo was killed" in outcome[1]


def test_an_interrupt_closes_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def work(*_: Any, **__: Any) -> Generator[tuple[int, Any], None, None]:
        try:
            yield 0, None
        finally:
            closed.append(True)

    def interrupt(words: str) -> None:
        if "are estimated" in words:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "work_in_processes", work)
    models = [("demo", resolve_model("demo"))]
    options = SweepOptions()
    with pytest.raises(KeyboardInterrupt):
        list(estimate_models(models, SCENARIOS, options, on_progress=interrupt, num_processes=2))
    assert closed == [True]


@pytest.mark.parametrize(("number", "parts"), [(1, 6), (4, 3), (20, 6), (7, 7), (5, 1)])
def test_parts_are_everything_once_and_about_equal(number: int, parts: int) -> None:
    bounds = run._divide(number, parts)
    covered = [position for first, end in bounds for position in range(first, end)]
    assert covered == list(range(number))
    lengths = [end - first for first, end in bounds]
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == min(number, parts)


def test_few_estimates_and_measurements_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "choose_num_processes", lambda number: number)
    assert run._choose_num_processes(11, SweepOptions()) == 1
    assert run._choose_num_processes(12, SweepOptions()) == 6
    assert run._choose_num_processes(99, SweepOptions(measure=True)) == 1
    monkeypatch.delitem(sys.modules, "torch")
    assert run._choose_num_processes(3, SweepOptions()) == 1
    assert run._choose_num_processes(4, SweepOptions()) == 2
