"""Several models, one of which fails: the others are shown all the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from unittest.mock import patch

import pytest

from moetool.errors import OutOfMemoryError
from tests.command import RunMoetool

# Fast, and refused for a catalogue name.
HEADERS = ("--source", "headers")
SMALL = ("--prompt-tokens", "16", "--new-tokens", "2")

NO_TYPO = "error: No model 'typo': no such path, and not a catalogue name."
NO_HEADERS = "error: 'mixtral-8x7b' has no weight files with readable headers."


def list_errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def test_models_that_work_are_shown_before_the_errors(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "mixtral-8x7b", "demo", "typo", *HEADERS)

    assert completed.returncode == 3
    assert list_errors(completed.stderr) == [NO_HEADERS, NO_TYPO]
    assert completed.stderr.count("hint: ") == 2
    assert completed.stdout == run_moetool("inspect", "demo", *HEADERS).stdout


def test_json_names_the_failures(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "typo", "demo", "mixtral-8x7b", *HEADERS, "--format", "json")
    shown = json.loads(completed.stdout)

    assert [model["model"] for model in shown["models"]] == ["demo"]
    assert [failure["model"] for failure in shown["failures"]] == ["typo", "mixtral-8x7b"]
    first = shown["failures"][0]
    assert set(first) == {"model", "error", "hint"}
    assert f"error: {first['error']}\nhint: {first['hint']}\n" in completed.stderr


def test_json_of_several_models_lists_no_failures_where_there_are_none(
    run_moetool: RunMoetool, demo: Path
) -> None:
    completed = run_moetool("inspect", "demo", demo, *HEADERS, "--format", "json")

    assert completed.returncode == 0
    assert json.loads(completed.stdout)["failures"] == []


def test_json_of_one_model_has_no_failures(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "demo", *HEADERS, "--format", "json")

    assert "failures" not in json.loads(completed.stdout)


def test_a_file_holds_the_models_that_work(run_moetool: RunMoetool, tmp_path: Path) -> None:
    target = tmp_path / "models.csv"
    completed = run_moetool("inspect", "typo", "demo", *HEADERS, "-o", target)

    assert completed.returncode == 3
    assert completed.stdout == ""
    rows = csv.DictReader(io.StringIO(target.read_text(encoding="utf-8")))
    assert {row["model"] for row in rows} == {"demo"}


@pytest.mark.parametrize("command", ["inspect", "memory-estimate"])
def test_nothing_is_written_where_every_model_fails(
    command: str, run_moetool: RunMoetool, tmp_path: Path
) -> None:
    target = tmp_path / "models.json"
    completed = run_moetool(command, "typo", "gtp-4", "-o", target)

    assert completed.returncode == 3
    assert len(list_errors(completed.stderr)) == 2
    assert completed.stdout == ""
    assert not target.exists()


def test_the_exit_code_is_that_of_the_first_failure(run_moetool: RunMoetool) -> None:
    # Only a Hub id has a revision: that is wrong usage.
    for models, code in ((("demo", "typo"), 2), (("typo", "demo"), 3)):
        completed = run_moetool("inspect", *models, "--revision", "v1")
        assert completed.returncode == code, completed.stderr


def test_memory_estimate_keeps_what_works(run_moetool: RunMoetool) -> None:
    completed = run_moetool("memory-estimate", "demo", "typo", *SMALL, "--format", "json", "-q")
    shown = json.loads(completed.stdout)

    assert completed.returncode == 3
    assert [estimate["model"] for estimate in shown["estimates"]] == ["demo"]
    assert [failure["model"] for failure in shown["failures"]] == ["typo"]
    assert list_errors(completed.stderr) == [NO_TYPO]


def test_an_option_that_no_model_can_have_is_reported_once(run_moetool: RunMoetool) -> None:
    completed = run_moetool("memory-estimate", "demo", "mixtral-8x7b", "--gpu", "nonsense")

    assert completed.returncode == 2
    assert len(list_errors(completed.stderr)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ZeroDivisionError()])
def test_interrupts_and_bugs_end_the_command(error: BaseException, run_moetool: RunMoetool) -> None:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    with patch("moetool.inspection.inspect.inspect_model", raise_it):
        if isinstance(error, ZeroDivisionError):
            with pytest.raises(ZeroDivisionError):
                run_moetool("inspect", "demo", "mixtral-8x7b")
            return
        completed = run_moetool("inspect", "demo", "mixtral-8x7b")
    assert completed.returncode == (130 if isinstance(error, KeyboardInterrupt) else 6)
    assert completed.stdout == ""


def test_a_model_that_does_not_fit_is_a_failure_like_others(run_moetool: RunMoetool) -> None:
    refusal = OutOfMemoryError("Too large.", hint="Take a larger GPU.")

    with patch("moetool.memory.estimate.estimate_memory", side_effect=refusal):
        completed = run_moetool("memory-estimate", "demo", "mixtral-8x7b")

    assert completed.returncode == 6
    assert completed.stderr == "error: Too large.\nhint: Take a larger GPU.\n"
