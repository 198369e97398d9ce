"""`moetool select` as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.command import RunMoetool


def test_the_page_begins_with_what_the_numbers_say(
    run_moetool: RunMoetool, demo_trace: Path
) -> None:
    completed = run_moetool("select", demo_trace, "--domain", "python")
    assert completed.returncode == 0, completed.stderr
    text = " ".join(completed.stdout.split())
    assert text.startswith("7 experts of 48 (14.6%) reach a token score of 0.2 in their layers")
    assert "a random router would need 12." in text
    assert "(30 prompts)" in text


def test_json_is_esft_s_configuration_with_the_figures_around_it(
    run_moetool: RunMoetool, demo_trace: Path, tmp_path: Path
) -> None:
    options = ("select", demo_trace, "--by", "gate", "--top-p", "0.3", "--shared-experts")
    exported = run_moetool(*options, "--export", "esft")
    config = json.loads(exported.stdout)
    assert config["shared_experts"] is True
    named = run_moetool(*options, "--export", "esft", "-o", tmp_path / "cfg.json")
    assert json.loads((tmp_path / "cfg.json").read_text(encoding="utf-8")) == config
    assert f"--expert_config={tmp_path / 'cfg.json'}" in named.stderr
    written = run_moetool(*options, "-o", tmp_path / "expert_cfg.json")
    assert (written.returncode, written.stdout) == (0, "")
    result = json.loads((tmp_path / "expert_cfg.json").read_text(encoding="utf-8"))
    assert result["schema"] == "moetool.select/1"
    assert {name: result[name] for name in config} == config
    assert [list(layer)[:5] for layer in result["layers"]] == [
        ["stack", "layer", "num_experts", "top_k", "num_tokens"]
    ] * 6
    assert result["trace"]["num_prompts"] == 210


def test_csv_has_a_row_for_each_expert(run_moetool: RunMoetool, demo_trace: Path) -> None:
    completed = run_moetool(
        "select", demo_trace, "--format", "csv", "--layers", "2-3", "--prune-ratio", "0.5"
    )
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert [(row["layer"], row["expert"]) for row in rows] == [
        (str(layer), str(expert)) for layer in (2, 3) for expert in range(8)
    ]
    assert sum(row["is_retained"] == "True" for row in rows) == 8


def test_saliency_is_recorded_and_used(run_moetool: RunMoetool, tmp_path: Path) -> None:
    traced = run_moetool(
        "route-trace",
        "demo",
        "--prompt",
        "def f(x): return x",
        "--saliency",
        "-o",
        "t.parquet",
        cwd=tmp_path,
    )
    assert traced.returncode == 0, traced.stderr
    data = torch.load(tmp_path / "t.saliency.pt", weights_only=True)
    completed = run_moetool(
        "select",
        "t.parquet",
        "--by",
        "saliency",
        "--saliency",
        "t.saliency.pt",
        "--prune-ratio",
        "0.25",
        "--export",
        "llm-compressor",
        cwd=tmp_path,
    )
    assert completed.returncode == 0, completed.stderr
    for layer, (module, kept) in enumerate(json.loads(completed.stdout).items()):
        saliency = data[layer]["reap"].tolist()
        order = sorted(range(8), key=lambda expert: (-saliency[expert], expert))
        assert kept == sorted(order[:6]), module


def test_a_load_table_has_token_scores_alone(run_moetool: RunMoetool, tmp_path: Path) -> None:
    table = pa.table({"layer": [3] * 4, "expert": [0, 1, 2, 3], "count": [10, 60, 20, 10]})
    pq.write_table(table, tmp_path / "loads.parquet")
    completed = run_moetool(
        "select", "loads.parquet", "--top-p", "0.7", "--format", "json", cwd=tmp_path
    )
    assert completed.returncode == 0, completed.stderr
    result = json.loads(completed.stdout)
    assert result["experts"] == {"3": [1, 2]}
    assert result["layers"][0]["scores"] == [0.1, 0.6, 0.2, 0.1]
    assert result["overlap"] is None
    for options, words in (
        (("--by", "gate"), "counts alone"),
        (("--domain", "a"), "no prompts"),
        (("--layers", "4"), "no routed layer 4"),
    ):
        refused = run_moetool("select", "loads.parquet", *options, cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--domain", "pyton"), "has no domain 'pyton'"),
        (("--top-p", "0"), "The cumulative score can't be 0."),
        (("--top-p", "2"), "can't be 2"),
        (("--prune-ratio", "1"), "can't be 1"),
        (("--prune-ratio", "0.95"), "leaves 1 of 8 experts"),
        (("--prune-ratio", "0.25", "--groups", "3"), "don't divide into 3 groups"),
        (("--groups", "2"), "none are"),
        (("--by", "saliency", "--prune-ratio", "0.5"), "need each other"),
        (("--export", "llm-compressor"), "none are dropped"),
        (("--export", "esft", "--format", "json"), "has no effect"),
        (("--layers", "9"), "no routed layer 9"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_written(
    options: tuple[str, ...], words: str, run_moetool: RunMoetool, demo_trace: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    completed = run_moetool("select", demo_trace, *options, "-o", output)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert words in completed.stderr
    assert completed.stderr.count("hint:") == 1
    assert not output.exists()


def test_a_model_without_experts_of_the_trace_s_kind_is_refused(
    run_moetool: RunMoetool, demo_trace: Path
) -> None:
    completed = run_moetool("select", demo_trace, "--freeze-list", "--model", "qwen3-30b-a3b")
    assert completed.returncode == 3
    assert "8 experts" in completed.stderr
