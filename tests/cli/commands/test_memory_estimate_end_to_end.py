"""`moetool memory-estimate` as users run it: what it answers, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

SIZES = ("--prompt-tokens", "16", "--new-tokens", "3")


def test_the_demonstration_is_answered_as_json(run_moetool: RunMoetool) -> None:
    completed = run_moetool(
        "memory-estimate", "demo", *SIZES, "--gpu", "750MiB", "--format", "json"
    )
    assert completed.returncode == 0, completed.stderr
    (estimate,) = json.loads(completed.stdout)["estimates"]
    assert (estimate["model"], estimate["gpu"], estimate["method"]) == (
        "demo",
        "750MiB",
        "simulated",
    )
    parts = [value for name, value in estimate["at_peak"].items() if name.endswith("_bytes")]
    assert sum(parts) == estimate["peak_allocated_bytes"]
    assert estimate["limits"]["largest_batch_size"] > 1


def test_a_sweep_of_two_models_is_written_as_rows(run_moetool: RunMoetool, tmp_path: Path) -> None:
    output = tmp_path / "sweep.csv"
    arguments = ["demo", "olmoe-1b-7b", *SIZES, "--batch-size", "2,1", "-o", output]
    completed = run_moetool("memory-estimate", *arguments)
    assert (completed.returncode, completed.stdout) == (0, ""), completed.stderr
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("demo", "2"),
        ("demo", "1"),
        ("olmoe-1b-7b", "2"),
        ("olmoe-1b-7b", "1"),
    ]
    assert len({row["peak_allocated_bytes"] for row in rows}) == 4


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        pytest.param(
            ["gpt-4", "--measure"],
            Refusal(2, error="GPT-4 is known from reports", hint="--measure"),
            id="reports",
        ),
        pytest.param(
            ["demo", "--gpu", "h2000"], Refusal(2, error="'h2000'", hint="h200"), id="a gpu"
        ),
        pytest.param(
            ["demo", "--prompt-tokens", "10000"],
            Refusal(2, error="past the context of demo", hint="--prompt-tokens"),
            id="past the context",
        ),
        pytest.param(
            ["demo", *SIZES, "--measure"],
            Refusal(2, error="no GPU that torch can use", hint="--measure"),
            id="nothing to measure on",
        ),
        pytest.param(
            ["qwen3-30b-a3b-fp8", *SIZES, "--quantization", "nf4"],
            Refusal(2, error="quantized already (fp8)", hint="--quantization"),
            id="quantized twice",
        ),
    ],
)
def test_what_can_not_be_estimated_is_refused(
    arguments: list[str],
    refusal: Refusal,
    run_moetool: RunMoetool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert_refused(run_moetool("memory-estimate", *arguments), refusal, target=None)
