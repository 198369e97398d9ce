"""`moetool specialize` as users run it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from moetool import read_trace
from tests.command import RunMoetool
from tests.tiny_models import randomize


def test_the_table_shows_every_layer_and_domain(run_moetool: RunMoetool, demo_trace: Path) -> None:
    completed = run_moetool("specialize", demo_trace)
    assert completed.returncode == 0, completed.stderr
    for word in ("arithmetic", "german", "mathematics", "≤ 0.001", "L5.E"):
        assert word in completed.stdout
    assert "randomly initialised model is significant too" in " ".join(completed.stdout.split())


def test_json_and_csv_carry_the_same_experts(
    run_moetool: RunMoetool, demo_trace: Path, tmp_path: Path
) -> None:
    for name in ("result.json", "result.csv"):
        completed = run_moetool("specialize", demo_trace, "-o", tmp_path / name)
        assert (completed.returncode, completed.stdout) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["schema"] == "moetool.specialize/1"
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 7 * 6 * 8
    assert [float(row["lift"]) for row in rows] == [cell["lift"] for cell in result["experts"]]


def test_a_randomly_initialised_copy_is_significant_too(
    run_moetool: RunMoetool, demo: Path, sample_prompts: Path, tmp_path: Path
) -> None:
    """As the output says, p alone does not show that a model has learned to specialize."""
    checkpoint = tmp_path / "random"
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo))
    randomize(model)
    model.save_pretrained(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, checkpoint)
    trace = tmp_path / "trace.parquet"
    completed = run_moetool("route-trace", checkpoint, "--prompts", sample_prompts, "-o", trace)
    assert completed.returncode == 0, completed.stderr
    completed = run_moetool("specialize", trace, "--format", "json")
    layers = json.loads(completed.stdout)["layers"]
    assert [layer["p_value"] for layer in layers] == [0.001] * 6


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_trace_of_someone_elses_making_is_accepted(
    run_moetool: RunMoetool, demo_trace: Path, tmp_path: Path, suffix: str
) -> None:
    frame = read_trace(demo_trace)
    frame = frame[frame["layer"] == 3]
    foreign = frame[["prompt_id", "domain", "position", "layer", "expert"]]
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".csv":
        foreign.to_csv(path, index=False)
    else:
        foreign.astype({"expert": "int64", "prompt_id": "str", "domain": "str"}).to_parquet(path)
    ours = json.loads(run_moetool("specialize", demo_trace, "--format", "json").stdout)
    completed = run_moetool("specialize", path, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    theirs = json.loads(completed.stdout)
    assert theirs["layers"][0]["mutual_information_nats"] == pytest.approx(
        ours["layers"][3]["mutual_information_nats"]
    )
    assert any("8 experts are assumed" in note for note in theirs["notes"])
    assert any("top-2" in note for note in theirs["notes"])
