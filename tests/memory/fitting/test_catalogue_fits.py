"""The whole catalogue against a card, with processes and facts that are not simulated."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import moetool
from moetool.catalogue.gpus import find_gpu
from moetool.catalogue.published import read_published_models
from moetool.errors import InputError, UsageError
from moetool.memory.fitting import catalogue_fits, workers
from moetool.memory.fitting.catalogue_fits import find_fitting_models
from moetool.memory.fitting.fact_cache import FactCache, find_cache_folder
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.fitting.workers import choose_num_processes, work_in_processes
from moetool.memory.scenario import Scenario

# Doubles numbers. It ends at a negative one without an answer, and never answers zero.
DOUBLING = """
import os, pickle, sys, time
while True:
    try:
        number = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if number < 0:
        os._exit(9)
    if number == 0:
        time.sleep(1000)
    pickle.dump((2 * number, os.getpid()), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
# Answers for a model what the test says about it, and writes down that it was asked.
ANSWERING = """
import pickle, sys
from moetool.memory.fitting.model_fit import ModelFit
while True:
    try:
        task = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if task.model == "dbrx":
        sys.exit(1)
    with open({asked!r}, "a") as file:
        file.write(task.model + " ")
    fit = ModelFit(task.model, params=5, fits=task.gpu.memory_bytes > 8 * 2**30)
    pickle.dump(fit, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
SCENARIO = Scenario()
GIB = 2**30


def work(tasks: list[int], *, num_processes: int = 2) -> Generator[tuple[int, Any], None, None]:
    return work_in_processes(tasks, (sys.executable, "-c", DOUBLING), num_processes=num_processes)


def test_every_task_is_answered_by_few_processes() -> None:
    answers = dict(work(list(range(1, 20))))
    assert {index: answer[0] for index, answer in answers.items()} == {
        index: 2 * (index + 1) for index in range(19)
    }
    assert 1 <= len({pid for _, pid in answers.values()}) <= 2


def test_a_process_that_ends_leaves_its_task_unanswered_and_is_replaced() -> None:
    answers = dict(work([1, -1, 2, -1, 3], num_processes=1))
    assert [answers[index] and answers[index][0] for index in range(5)] == [2, None, 4, None, 6]


def test_no_process_outlives_the_one_that_asks() -> None:
    working = work([1, 0, 0])
    _, (number, pid) = next(working)
    assert number == 2
    working.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_there_are_no_more_processes_than_tasks_or_cores() -> None:
    assert choose_num_processes(1) == 1
    assert 1 <= choose_num_processes(1000) <= (os.cpu_count() or 1)


def test_there_are_as_many_processes_as_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(workers, "_MEMINFO", meminfo)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    # Without the file, as on other systems, only cores count.
    assert choose_num_processes(1000) == 16
    for gib, number in ((100, 16), (9, 4), (1, 1)):
        lines = f"MemFree: 1 kB\nMemAvailable:   {gib * 2**20} kB\nBuffers: 5 kB\n"
        meminfo.write_text(lines, encoding="ascii")
        assert choose_num_processes(1000) == number


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the models that processes were asked for, where facts are kept elsewhere."""
    path = tmp_path / "asked"
    path.write_text("", encoding="utf-8")
    command = (sys.executable, "-c", ANSWERING.format(asked=str(path)))
    monkeypatch.setattr(catalogue_fits, "WORKER", command)
    monkeypatch.setattr(catalogue_fits, "choose_num_processes", lambda _: 1)
    monkeypatch.setenv("MOETOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(moetool.__file__).parent.parent))
    return path


def keep_facts(model: str, *, weights_bytes: int, total_bytes: int | None) -> None:
    cache = FactCache(find_cache_folder())
    cache.write_size(model, ModelSize(weights_bytes, 1))
    facts = RunFacts(is_weighed=True, weights_bytes=weights_bytes, total_bytes=total_bytes)
    facts.no_search_because = "it isn't asked here."
    cache.write_facts(model, find_gpu("10GiB"), SCENARIO, facts)


def test_models_that_are_known_are_not_asked_for(asked: Path) -> None:
    keep_facts("mixtral-8x7b", weights_bytes=87 * GIB, total_bytes=None)
    keep_facts("olmoe-1b-7b", weights_bytes=2 * GIB, total_bytes=3 * GIB)
    seen: list[tuple[int, int, str]] = []
    models = ["mixtral-8x7b", "OLMoE-1B-7B", "dbrx", "grok-1", "kimi-k3"]
    found = find_fitting_models("10GiB", models=models, on_progress=lambda *step: seen.append(step))
    assert asked.read_text(encoding="utf-8").split() == ["grok-1"]
    assert [fit.model for fit in found.fitting] == ["olmoe-1b-7b", "grok-1"]
    assert found.fitting[0].headroom_bytes == 7 * GIB
    assert [fit.model for fit in found.too_large] == ["mixtral-8x7b"]
    # One can't be counted, and the process that simulated the other ended.
    reasons = {fit.model: fit.reason or "" for fit in found.unknown}
    assert reasons["kimi-k3"] == read_published_models()["kimi-k3"].not_counted_because
    assert "process that simulated it ended" in reasons["dbrx"]
    assert seen == [(3, 5, ""), (4, 5, "grok-1"), (5, 5, "dbrx")]
    assert found.scenario == SCENARIO
    assert repr(found) == "<CatalogueFits 10gib: 2 of 5 models run>"


def test_fits_are_an_object_and_a_frame(asked: Path) -> None:
    keep_facts("olmoe-1b-7b", weights_bytes=2 * GIB, total_bytes=3 * GIB)
    found = find_fitting_models("10GiB", models=["olmoe-1b-7b", "kimi-k3"])
    value = found.to_dict()
    assert (value["gpu"], value["memory_bytes"], value["num_fitting"]) == ("10gib", 10 * GIB, 1)
    assert [row["model"] for row in value["models"]] == ["olmoe-1b-7b", "kimi-k3"]
    frame = found.to_frame().set_index("model")
    assert frame.headroom_bytes.dtype == "Int64"
    assert frame.headroom_bytes["olmoe-1b-7b"] == 7 * GIB
    assert frame.fits.isna().tolist() == [False, True]
    assert asked.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_interrupt_says_whether_facts_are_kept(asked: Path, use_cache: bool) -> None:
    def interrupt(num_done: int, num_all: int, name: str) -> None:
        del num_all, name
        if num_done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        find_fitting_models(
            "10GiB", models=["grok-1", "dots.llm1"], use_cache=use_cache, on_progress=interrupt
        )
    notes = getattr(caught.value, "__notes__", [])
    kept = "What was found out is kept: the same command goes on from there."
    assert notes == ([kept] if use_cache else [])
    assert asked.read_text(encoding="utf-8").split()[0] == "grok-1"


def test_without_the_cache_everything_is_asked_for(asked: Path) -> None:
    keep_facts("olmoe-1b-7b", weights_bytes=2 * GIB, total_bytes=3 * GIB)
    find_fitting_models("10GiB", models=["olmoe-1b-7b"], use_cache=False)
    assert asked.read_text(encoding="utf-8").split() == ["olmoe-1b-7b"]


def test_everything_in_the_catalogue_is_asked_for_without_names(asked: Path) -> None:
    found = find_fitting_models("8GiB", sort="name")
    known = read_published_models()
    assert {fit.model for fit in found.models} == set(known)
    assert set(asked.read_text(encoding="utf-8").split()) == set(known) - {"dbrx", "kimi-k3"}
    assert [fit.model for fit in found.unknown] == ["dbrx", "kimi-k3"]


def test_models_that_may_fit_are_asked_for_first_and_then_the_largest(asked: Path) -> None:
    models = ["granite-3.0-1b-a400m", "switch-c-2048", "mixtral-8x7b", "olmoe-1b-7b"]
    find_fitting_models("10GiB", models=models)
    assert asked.read_text(encoding="utf-8").split() == [
        "olmoe-1b-7b",
        "granite-3.0-1b-a400m",
        "switch-c-2048",
        "mixtral-8x7b",
    ]


def test_unknown_names_are_refused(asked: Path) -> None:
    with pytest.raises(InputError, match="no model 'mixtral'"):
        find_fitting_models("10GiB", models=["mixtral"])
    with pytest.raises(UsageError, match="no GPU called 'h2000'"):
        find_fitting_models("h2000")
    with pytest.raises(UsageError, match="order"):
        find_fitting_models("10GiB", sort="size")
    assert asked.read_text(encoding="utf-8") == ""


def test_a_process_of_its_own_answers_for_a_model(tmp_path: Path) -> None:
    """The only test in which another process imports torch."""
    del tmp_path
    found = find_fitting_models("8GiB", models=["mixtral-8x7b", "kimi-k2.5"], use_cache=False)
    fit = found.models[0]
    assert (fit.fits, fit.params, fit.active_params) == (False, 46702792704, 12879925248)
    assert found.models[1].fits is None
