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
