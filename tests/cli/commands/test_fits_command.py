"""`moetool fits` as users run it, with facts that are kept and none that are simulated."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.catalogue.published import read_published_models
from moetool.memory.fitting import catalogue_fits
from moetool.memory.fitting.fact_cache import FactCache
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.scenario import Scenario
from moetool.quantizing.kinds import Quantization
from tests.cli.process.test_startup import modules_imported_by
from tests.command import RunMoetool

GIB = 2**30
SIZES = {"olmoe-1b-7b": 13, "granite-3.0-1b-a400m": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FactCache:
    """Keep facts by which two models run on 24 GiB and no other does."""
    monkeypatch.setenv("MOETOOL_CACHE", str(tmp_path / "cache"))
    # Whatever is not known is unknown: a process that is killed at once.
    command = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(catalogue_fits, "WORKER", command)
    cache = FactCache(tmp_path / "cache")
    for model in read_published_models().values():
        if model.can_be_counted:
            size = SIZES.get(model.name, 100) * GIB
            cache.write_size(model.name, ModelSize(size // 2, size // 4, 4096))
            facts = RunFacts(is_weighed=True, context=4096, weights_bytes=size)
            if model.name in SIZES:
                facts.total_bytes = size + GIB
                facts.prompt_bytes = {"3840": size + 2 * GIB}
            cache.write_facts(model.name, find_gpu("24GiB"), Scenario(), facts)
    return cache


def test_the_table_lists_what_runs(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "24GiB")
    assert (completed.returncode, completed.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in completed.stdout.splitlines()]
    assert lines[0] == "2 of 68 models run on 1 × 24GiB; 1 is unknown."
    assert "olmoe-1b-7b 6.979B 3.490B 13.0 GiB 10.0 GiB 3,840 *" in lines
    assert "mixtral-8x7b" not in completed.stdout


def test_all_lists_the_rest(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "24GiB", "--all", "--sort", "name")
    assert "mixtral-8x7b" in completed.stdout
    assert "kimi-k3: transformers has no class for it" in completed.stdout


def test_a_family_is_all_that_is_listed(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "24GiB", "--family", "granite", "--format", "csv")
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert [(row["model"], row["fits"]) for row in rows] == [
        ("granite-3.0-1b-a400m", "True"),
        ("granite-3.0-3b-a800m", "False"),
    ]


def test_a_family_without_models_is_refused(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "24GiB", "--family", "no such family")
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr == (
        "error: No model of the catalogue matches the family 'no such family'.\n"
        "hint: Run `moetool models` to list its models.\n"
    )


@pytest.mark.parametrize(
    ("options", "prompt", "new", "reason"),
    [
        (("--prompt-tokens", "4000"), 4000, 96, "The longest prompt is unknown: it is kept."),
        (("--new-tokens", "4000"), 96, 4000, "The longest prompt is unknown: it is kept."),
        (("--prompt-tokens", "4000", "--new-tokens", "256"), 4000, 96, "past the context"),
    ],
)
def test_sizes_that_were_not_given_are_within_the_context(
    run_moetool: RunMoetool,
    cache: FactCache,
    options: tuple[str, ...],
    prompt: int,
    new: int,
    reason: str,
) -> None:
    gpu = find_gpu("24GiB")
    clipped = Scenario(num_prompt_tokens=prompt, num_new_tokens=new)
    facts = RunFacts(is_weighed=True, weights_bytes=GIB, total_bytes=2 * GIB)
    facts.no_search_because = "it is kept."
    cache.write_facts("olmoe-1b-7b", gpu, clipped, facts)
    whole = Scenario(num_prompt_tokens=4000, num_new_tokens=256)
    cache.write_facts("olmoe-1b-7b", gpu, whole, RunFacts(unknown_because="past the context"))
    completed = run_moetool(
        "fits", "--gpu", "24GiB", "--family", "olmoe", *options, "--format", "json"
    )
    (model,) = json.loads(completed.stdout)["models"]
    assert model["reason"] == reason
    assert (model["note"] is None) is (reason == "past the context")


def test_several_gpus_are_refused_with_what_to_do_instead(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "8xh100")
    assert completed.returncode == 2
    assert completed.stderr == (
        "error: '8xh100' names several GPUs, and an estimate is for one.\n"
        "hint: Give h100. `moetool memory-estimate MODEL --gpu h100` shows how many of them a model "
        "needs, and what each of several holds.\n"
    )


def test_an_interrupt_has_one_hint(
    run_moetool: RunMoetool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> Iterator[tuple[int, None]]:
        yield 0, None
        raise KeyboardInterrupt

    monkeypatch.setattr(catalogue_fits, "work_in_processes", interrupt)
    again = run_moetool("fits", "--gpu", "16GiB", "--batch-size", "2")
    assert (again.returncode, again.stdout) == (130, "")
    assert again.stderr == (
        "error: Interrupted.\nhint: Run the same command again to go on from what was found.\n"
    )
    anew = run_moetool("fits", "--gpu", "16GiB", "--no-cache")
    assert anew.stderr.startswith(
        "error: Interrupted.\nhint: Run the same command again; this one wrote"
    )


def test_json_and_csv_have_every_model(run_moetool: RunMoetool, tmp_path: Path) -> None:
    for name in ("fits.json", "fits.csv"):
        completed = run_moetool("fits", "--gpu", "24GiB", "-o", tmp_path / name)
        assert (completed.returncode, completed.stdout) == (0, "")
    listed = json.loads((tmp_path / "fits.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((tmp_path / "fits.csv").read_text(encoding="utf-8").splitlines()))
    assert listed["schema"] == "moetool.fits/1"
    assert [row["model"] for row in rows] == [model["model"] for model in listed["models"]]
    assert len(rows) == 68
    assert (rows[0]["model"], rows[0]["longest_prompt_tokens"]) == ("olmoe-1b-7b", "3840")


def test_options_make_the_scenario(run_moetool: RunMoetool, cache: FactCache) -> None:
    scenario = Scenario(
        batch_size=2, num_prompt_tokens=100, num_new_tokens=8, quantization=Quantization.NF4
    )
    facts = RunFacts(is_weighed=True, weights_bytes=GIB, total_bytes=2 * GIB)
    facts.no_search_because = "it takes too long."
    cache.write_facts("dbrx", find_gpu("24GiB"), scenario, facts)
    sizes = ("--batch-size", "2", "--prompt-tokens", "100", "--new-tokens", "8")
    completed = run_moetool(
        "fits", "--gpu", "24GiB", *sizes, "--quantization", "nf4", "--format", "json"
    )
    models = {model["model"]: model for model in json.loads(completed.stdout)["models"]}
    assert models["dbrx"]["headroom_bytes"] == 22 * GIB
    assert models["dbrx"]["reason"] == "The longest prompt is unknown: it takes too long."
    assert models["olmoe-1b-7b"]["fits"] is None


def test_without_the_cache_nothing_is_known(run_moetool: RunMoetool) -> None:
    completed = run_moetool("fits", "--gpu", "24GiB", "--no-cache", "--format", "json")
    assert {model["fits"] for model in json.loads(completed.stdout)["models"]} == {None}


def test_what_is_wrong_is_refused_before_any_work(run_moetool: RunMoetool) -> None:
    for arguments, message in (
        (("--gpu", "h2000"), "There is no GPU called 'h2000'."),
        (("--gpu", "24GiB", "--batch-size", "0"), "The batch size can't be 0."),
        ((), "`moetool fits` needs --gpu."),
    ):
        completed = run_moetool("fits", *arguments)
        assert completed.returncode == 2
        assert completed.stderr.startswith(f"error: {message}\nhint: ")


def test_an_answer_from_the_cache_imports_no_torch() -> None:
    assert not modules_imported_by("fits", "--gpu", "24GiB") & {"torch", "transformers", "pandas"}
