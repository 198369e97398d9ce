"""GPUs that share a model, compared with what two H200s showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory.several_gpus.estimated import Run, group_runs, simulate

MEASURED = Path("benchmarks/memory/measured")


def read_runs(name: str) -> dict[Run, list[dict[str, Any]]]:
    """Return the lines of each measured run."""
    text = (MEASURED / name).read_text(encoding="utf-8")
    return group_runs([json.loads(line) for line in text.splitlines()])


RUNS = read_runs("several_gpus_h200.jsonl")
RUNS_IN_FP8 = read_runs("formats/several_gpus_h200.jsonl")
_TOLERANCE = 0.005


def test_three_families_were_measured_in_three_ways_and_scenarios() -> None:
    seen = {(run.geometry.split(",")[0], run.way) for run in RUNS if run.way != "data"}
    assert len(seen) == 9
    for family, way in seen:
        same = [run for run in RUNS if run.geometry.startswith(family) and run.way == way]
        assert len({run[3:] for run in same}) == 3


# The benchmark compares all of them.
CHOSEN = [run for run in RUNS if run.way != "data" and run.batch_size != 16]
CHOSEN_IN_FP8 = [run for run in RUNS_IN_FP8 if run.batch_size == 4]


@pytest.mark.parametrize(
    "run", [*CHOSEN, *CHOSEN_IN_FP8], ids=lambda run: f"{run.geometry} {run.way}"
)
def test_two_h200s_showed_the_same_peaks(run: Run) -> None:
    measured = (RUNS | RUNS_IN_FP8)[run]
    peaks = simulate(run, first=measured[0])
    assert len(peaks) == len(measured)
    for line in measured:
        peak = line["peak_allocated_bytes"]
        assert abs(peaks[line["rank"]] - peak) <= _TOLERANCE * peak
