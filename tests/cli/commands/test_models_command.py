"""`moetool models` as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.cli.process.test_startup import modules_imported_by
from tests.command import RunMoetool


def test_the_table_lists_models_and_reported_systems(run_moetool: RunMoetool) -> None:
    completed = run_moetool("models")
    assert (completed.returncode, completed.stderr) == (0, "")
    for word in ("mixtral-8x7b", "46.7B", "12.9B", "llama-2-70b", "gpt-4", "reported"):
        assert word in completed.stdout


def test_json_and_csv_list_the_same_models(run_moetool: RunMoetool, tmp_path: Path) -> None:
    for name in ("models.json", "models.csv"):
        completed = run_moetool("models", "-o", tmp_path / name)
        assert (completed.returncode, completed.stdout) == (0, "")
    listed = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))["models"]
    rows = list(csv.DictReader((tmp_path / "models.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["name"] for row in rows] == [entry["name"] for entry in listed]
    assert {entry["kind"] for entry in listed} == {"open", "dense", "reported"}


def test_an_existing_file_is_replaced_only_if_asked(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    output = tmp_path / "models.json"
    output.write_text("mine", encoding="utf-8")
    completed = run_moetool("models", "-o", output)
    assert completed.returncode == 2
    assert completed.stderr.startswith(f"error: '{output}' exists.\nhint: ")
    assert output.read_text(encoding="utf-8") == "mine"
    assert run_moetool("models", "-o", output, "--force").returncode == 0
    assert json.loads(output.read_text(encoding="utf-8"))["schema"] == "moetool.models/1"


def test_listing_imports_no_torch() -> None:
    assert not modules_imported_by("models") & {"torch", "transformers", "pandas", "numpy"}


def test_filters_and_orders_choose_the_rows(run_moetool: RunMoetool) -> None:
    command = ("models", "--family", "qwen", "--max-active", "3B", "--sort", "total")
    completed = run_moetool(*command, "--format", "csv")
    assert (completed.returncode, completed.stderr) == (0, "")
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert [(row["name"], row["total"], row["active"]) for row in rows] == [
        ("qwen3-next-80b-a3b", "80B", "3B"),
        ("qwen3.5-35b-a3b", "35B", "3B"),
        ("qwen3-vl-30b-a3b", "30B", "3B"),
        ("qwen1.5-moe-a2.7b", "14.3B", "2.7B"),
    ]


def test_models_of_unknown_size_are_counted_where_a_limit_leaves_them_out(
    run_moetool: RunMoetool,
) -> None:
    command = ("models", "--family", "glm-5", "--max-total", "800B", "--format", "json")
    completed = run_moetool(*command)
    sentence = (
        "3 models were left out because the vendor doesn't publish the figure that is limited."
    )
    assert completed.stderr == f"{sentence}\n"
    value = json.loads(completed.stdout)
    assert [entry["name"] for entry in value["models"]] == ["glm-5"]
    assert value["notes"][-1] == sentence
    assert run_moetool(*command, "-q").stderr == ""


def test_a_filter_that_matches_nothing_is_said_on_stderr(run_moetool: RunMoetool) -> None:
    completed = run_moetool("models", "--family", "nothing-of-the-kind", "--format", "csv")
    assert (completed.returncode, completed.stderr) == (0, "No model matches.\n")
    assert len(completed.stdout.splitlines()) == 1


def test_a_size_without_a_unit_is_refused(run_moetool: RunMoetool) -> None:
    completed = run_moetool("models", "--max-total", "30")
    assert completed.returncode == 2
    assert completed.stderr == (
        "error: --max-total: '30' is not a number of parameters.\n"
        "hint: Write billions as 4B, and millions as 700M.\n"
    )
