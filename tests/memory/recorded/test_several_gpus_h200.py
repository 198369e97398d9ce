"""GPUs that share a model, compared with what two H200s showed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.memory.several_gpus import Run, group_runs, simulate

MEASURED = Path("benchmarks/memory/measured/several_gpus_h200.jsonl")
RUNS = group_runs([json.loads(text) for text in MEASURED.read_text().splitlines()])
_TOLERANCE = 0.005


def test_three_families_were_measured_in_three_ways_and_scenarios() -> None:
    seen = {(run.geometry.split(",")[0], run.way) for run in RUNS if run.way != "data"}
    assert len(seen) == 9
    for family, way in seen:
        same = [run for run in RUNS if run.geometry.startswith(family) and run.way == way]
        assert len({run[3:] for run in same}) == 3


# The benchmark compares all of them.
CHOSEN = [run for run in RUNS if run.way != "data" and run.batch_size != 16]


@pytest.mark.parametrize("run", CHOSEN, ids=lambda run: f"{run.geometry} {run.way}")
def test_two_h200s_showed_the_same_peaks(run: Run) -> None:
    measured = RUNS[run]
    peaks = simulate(run, first=measured[0])
    assert len(peaks) == len(measured)
    for line in measured:
        peak = line["peak_allocated_bytes"]
        assert abs(peaks[line["rank"]] - peak) <= _TOLERANCE * peak
