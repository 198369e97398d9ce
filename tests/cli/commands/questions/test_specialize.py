"""`moetool specialize` as users run it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from moetool import measure_specialization, read_trace
from moetool.analysis.specialization.result import Specialization
from moetool.report.questions.specialize import render_table_text
from moetool.report.renderer import View
from tests.command import RunMoetool
from tests.tiny_models import randomize


@pytest.fixture(scope="module")
def trained(run_moetool: RunMoetool, demo_trace: Path) -> Any:
    """The JSON of the demonstration checkpoint's trace."""
    completed = run_moetool("specialize", demo_trace, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


def test_the_table_shows_every_layer_and_domain(run_moetool: RunMoetool, demo_trace: Path) -> None:
    completed = run_moetool("specialize", demo_trace)
    assert completed.returncode == 0, completed.stderr
    for word in ("arithmetic", "german", "mathematics", "≤ 0.001", "L5.E"):
        assert word in completed.stdout
    text = " ".join(completed.stdout.split())
    assert text.startswith("Experts specialize by domain in 6 of 6 layers beyond vocabulary")


def test_json_and_csv_carry_the_same_experts(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    for name in ("result.json", "result.csv"):
        completed = run_moetool("specialize", short_demo_trace, "-o", tmp_path / name)
        assert (completed.returncode, completed.stdout) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["schema"] == "moetool.specialize/1"
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 7 * 6 * 8
    assert [float(row["lift"]) for row in rows] == [cell["lift"] for cell in result["experts"]]


@pytest.mark.parametrize("has_attention", [True, False], ids=["whole", "without attention"])
def test_a_randomly_initialised_copy_routes_by_vocabulary(
    run_moetool: RunMoetool,
    demo: Path,
    sample_prompts: Path,
    trained: Any,
    tmp_path: Path,
    has_attention: bool,
) -> None:
    """It differs between domains as well; given the token, next to nothing of that is left.

    Without attention, which lets a token see the text before it, exactly nothing is left.
    """
    checkpoint = tmp_path / "random"
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo))
    randomize(model)
    if not has_attention:
        for name, weight in model.named_parameters():
            if name.endswith("o_proj.weight"):
                weight.data.zero_()
    model.save_pretrained(checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, checkpoint)
    trace = tmp_path / "trace.parquet"
    few = () if has_attention else ("--limit-per-domain", "6")
    options = ("--prompts", sample_prompts, *few, "-o", trace)
    completed = run_moetool("route-trace", checkpoint, *options)
    assert completed.returncode == 0, completed.stderr
    result = measure_specialization(trace)
    assert isinstance(result, Specialization)
    random = result.to_dict()
    assert [layer["p_value"] for layer in random["layers"]] == [0.001] * 6
    for mine, theirs in zip(random["layers"], trained["layers"], strict=True):
        if has_attention:
            assert 0 < mine["conditional_normalized"] < theirs["conditional_normalized"] / 3
        else:
            assert mine["conditional_excess_nats"] == pytest.approx(0, abs=1e-12)
            assert mine["conditional_p_value"] == 1
            assert mine["same_domain_overlap"] == mine["other_domain_overlap"] == pytest.approx(1)
    assert trained["verdict"]["num_layers_beyond_vocabulary"] == 6
    beyond = [each["verdict"]["num_experts_beyond_vocabulary"] for each in (random, trained)]
    assert beyond[0] < beyond[1] / 2 if has_attention else beyond[0] == 0
    text = " ".join(render_table_text(result, View()).split())
    assert text.startswith("Experts differ between domains in 6 of 6 layers, ")
    assert "more than vocabulary explains" in text


def test_by_token_the_table_json_and_csv_agree(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    completed = run_moetool("specialize", short_demo_trace, "--by", "token", "--layers", "2,5")
    assert completed.returncode == 0, completed.stderr
    for name in ("result.json", "result.csv"):
        options = ("--by", "token", "--layers", "2,5", "-o", tmp_path / name)
        written = run_moetool("specialize", short_demo_trace, *options)
        assert (written.returncode, written.stdout) == (0, "")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["schema"], result["by"]) == ("moetool.specialize/1", "token")
    assert [layer["layer"] for layer in result["layers"]] == [2, 5]
    for layer in result["layers"]:
        assert f"{layer['vocabulary_specialization']:.1%}" in completed.stdout
        assert layer["vocabulary_specialization"] > layer["loads"]["vocabulary_specialization"]
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["token"] for row in rows] == [token["token"] for token in result["tokens"]]
    loads = [float(row["loads_shrunken_lift"]) for row in rows]
    assert loads == [token["loads"]["shrunken_lift"] for token in result["tokens"]]
    assert {*rows[0]} - {"loads_shrunken_lift"} == {*result["tokens"][0]} - {"loads"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_trace_of_someone_elses_making_is_accepted(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path, suffix: str
) -> None:
    frame = read_trace(short_demo_trace)
    frame = frame[frame["layer"] == 3]
    foreign = frame[["prompt_id", "domain", "position", "layer", "expert"]]
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".csv":
        foreign.to_csv(path, index=False)
    else:
        foreign.astype({"expert": "int64", "prompt_id": "str", "domain": "str"}).to_parquet(path)
    completed = run_moetool("specialize", path, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    theirs = json.loads(completed.stdout)
    (mine,) = measure_specialization(short_demo_trace, layers=[3]).layers
    assert theirs["layers"][0]["mutual_information_nats"] == pytest.approx(
        mine.mutual_information_nats
    )
    assert any("8 experts are assumed" in note for note in theirs["notes"])
    assert any("Top-2 is assumed" in note for note in theirs["notes"])
