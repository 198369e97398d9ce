"""The whole catalogue against a card, with processes and facts that are not simulated."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import moetool
from moetool.catalogue.gpus import find_gpu
from moetool.catalogue.published import read_published_models
from moetool.errors import InputError, UsageError
from moetool.memory.fitting import catalogue_fits
from moetool.memory.fitting.catalogue_fits import find_fitting_models
from moetool.memory.fitting.fact_cache import FactCache, find_cache_folder
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.scenario import Scenario
from moetool.process.worker import WorkerError

# Answers for a model what the test says about it, and writes down that it was asked.
ANSWERING = """
import os, pickle, signal, sys
from moetool.memory.fitting.model_fit import ModelFit
while True:
    try:
        task = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    if task.model == "dbrx":
        os.kill(os.getpid(), signal.SIGKILL)
    with open({asked!r}, "a") as file:
        file.write(task.model + " ")
    fit = ModelFit(task.model, params=5, fits=task.gpu.memory_bytes > 8 * 2**30)
    pickle.dump(fit, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
SCENARIO = Scenario()
GIB = 2**30


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


def keep_facts(
    model: str,
    *,
    weights_bytes: int,
    total_bytes: int | None,
    scenario: Scenario = SCENARIO,
    most_tokens: int | None = None,
) -> None:
    cache = FactCache(find_cache_folder())
    cache.write_size(model, ModelSize(weights_bytes, 1, most_tokens))
    facts = RunFacts(is_weighed=True, weights_bytes=weights_bytes, total_bytes=total_bytes)
    facts.no_search_because = "it isn't asked here."
    cache.write_facts(model, find_gpu("10GiB"), scenario, facts)


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
    # One can't be counted, and the process that simulated the other was killed.
    reasons = {fit.model: fit.reason or "" for fit in found.unknown}
    assert reasons["kimi-k3"] == read_published_models()["kimi-k3"].not_counted_because
    assert "process that simulated it was killed" in reasons["dbrx"]
    assert seen == [(3, 5, ""), (4, 5, "grok-1"), (5, 5, "dbrx")]
    assert found.scenario == SCENARIO
    assert repr(found) == "<CatalogueFits 10GiB: 2 fitting, 1 too large, 2 unknown>"
    assert repr(replace(found, models=found.fitting)) == (
        "<CatalogueFits 10GiB: 2 fitting, 0 too large>"
    )


def test_fits_are_an_object_and_a_frame(asked: Path) -> None:
    keep_facts("olmoe-1b-7b", weights_bytes=2 * GIB, total_bytes=3 * GIB)
    found = find_fitting_models("10GiB", models=["olmoe-1b-7b", "kimi-k3"])
    value = found.to_dict()
    assert (value["gpu"], value["memory_bytes"], value["num_fitting"]) == ("10GiB", 10 * GIB, 1)
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
    hint = "Run the same command again to go on from what was found."
    assert getattr(caught.value, "hint", None) == (hint if use_cache else None)
    assert ("what was found is kept" in str(caught.value)) is use_cache
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


@pytest.mark.parametrize("models", ["mixtral-8x7b", [3], [], 5, b"mixtral-8x7b"])
def test_models_that_are_not_a_list_of_names_are_refused(models: Any, asked: Path) -> None:
    with pytest.raises(UsageError, match="models"):
        find_fitting_models("10GiB", models=models)
    assert asked.read_text(encoding="utf-8") == ""


def test_a_model_that_is_named_twice_is_asked_for_once(asked: Path) -> None:
    found = find_fitting_models("10GiB", models=["grok-1", "Grok-1", "grok-1"])
    assert [fit.model for fit in found.models] == ["grok-1"]
    assert asked.read_text(encoding="utf-8").split() == ["grok-1"]


def test_other_options_are_checked_too(asked: Path) -> None:
    scenario: Any = "batch"
    with pytest.raises(UsageError, match="scenario"):
        find_fitting_models("10GiB", scenario)
    with pytest.raises(UsageError, match="clipped size"):
        find_fitting_models("10GiB", clipped_sizes=["batch_size"])
    assert asked.read_text(encoding="utf-8") == ""


def test_sizes_are_reduced_to_the_context_of_each_model(asked: Path) -> None:
    wanted = Scenario(num_prompt_tokens=4000)
    clipped = replace(wanted, num_new_tokens=96)
    for scenario, total_bytes in ((clipped, 3 * GIB), (wanted, 11 * GIB)):
        keep_facts(
            "olmoe-1b-7b",
            weights_bytes=2 * GIB,
            total_bytes=total_bytes,
            scenario=scenario,
            most_tokens=4096,
        )
    (fit,) = find_fitting_models(
        "12GiB", wanted, models=["olmoe-1b-7b"], clipped_sizes=["num_new_tokens"]
    ).models
    assert fit.headroom_bytes == 9 * GIB
    assert fit.note == "The context is 4,096 tokens: the run has 96 instead of 256 new tokens."
    (fit,) = find_fitting_models("12GiB", wanted, models=["olmoe-1b-7b"]).models
    assert (fit.headroom_bytes, fit.note) == (1 * GIB, None)
    assert asked.read_text(encoding="utf-8") == ""


def test_without_a_scenario_both_sizes_may_be_reduced(asked: Path) -> None:
    keep_facts(
        "olmoe-1b-7b",
        weights_bytes=2 * GIB,
        total_bytes=3 * GIB,
        scenario=Scenario(num_prompt_tokens=150, num_new_tokens=150),
        most_tokens=300,
    )
    (fit,) = find_fitting_models("10GiB", models=["olmoe-1b-7b"]).models
    assert (fit.fits, fit.headroom_bytes) == (True, 7 * GIB)
    assert "150 instead of 2,048 prompt tokens and 150 instead of 256 new tokens" in (
        fit.note or ""
    )
    assert asked.read_text(encoding="utf-8") == ""


def test_a_process_that_fails_is_an_error(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del asked
    command = (sys.executable, "-c", "raise SystemExit('there is a bug')")
    monkeypatch.setattr(catalogue_fits, "WORKER", command)
    with pytest.raises(WorkerError, match=r"exit code 1\.\nthere is a bug"):
        find_fitting_models("10GiB", models=["grok-1"])


def test_a_separate_process_answers_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only test in which another process imports torch."""
    monkeypatch.setattr(catalogue_fits, "choose_num_processes", lambda _: 1)
    found = find_fitting_models("8GiB", models=["mixtral-8x7b", "kimi-k2.5"], use_cache=False)
    fit = found.models[0]
    assert (fit.fits, fit.params, fit.active_params) == (False, 46702792704, 12879925248)
    assert found.models[1].fits is None
