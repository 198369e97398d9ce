"""GPUs that share a model, compared with what H200s showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory.several_gpus.cases import Case
from benchmarks.memory.several_gpus.estimated import (
    Run,
    find_refused,
    group_runs,
    refuse,
    simulate,
)

MEASURED = Path("benchmarks/memory/measured")


def read_lines(name: str) -> list[dict[str, Any]]:
    """Return the lines that ranks wrote, or their errors."""
    text = (MEASURED / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


TWO = group_runs(read_lines("several_gpus/two_h200s.jsonl"))
IN_FP8 = group_runs(read_lines("formats/several_gpus_h200.jsonl"))
# Each rank alone, with torch's fake process group in place of NCCL.
ALONE = read_lines("several_gpus/ranks_h200.jsonl")
RANKS = group_runs([line for line in ALONE if "error" not in line])
REFUSED = find_refused(ALONE)
_TOLERANCE = 0.005


def test_three_families_were_measured_in_three_ways_and_scenarios() -> None:
    seen = {(run.geometry.split(",")[0], run.way) for run in TWO if run.way != "data"}
    assert len(seen) == 9
    for family, way in seen:
        same = [run for run in TWO if run.geometry.startswith(family) and run.way == way]
        assert len({run[3:] for run in same}) == 3


# The benchmark compares all of them.
CHOSEN = [
    *(run for run in TWO if run.way != "data" and run.batch_size != 16),
    *(run for run in IN_FP8 if run.batch_size == 4),
    *(run for run in RANKS if run.batch_size == 2),
]


@pytest.mark.parametrize(
    "run", CHOSEN, ids=lambda run: f"{run.geometry} {run.way} on {run.num_gpus}"
)
def test_h200s_showed_the_same_peaks(run: Run) -> None:
    measured = (TWO | IN_FP8 | RANKS)[run]
    peaks = simulate(run, first=measured[0])
    assert [line["rank"] for line in measured] == [*range(len(peaks))]
    for line in measured:
        peak = line["peak_allocated_bytes"]
        assert abs(peaks[line["rank"]] - peak) <= _TOLERANCE * peak


def test_the_last_of_four_gpus_needs_more_for_a_shorter_part_of_the_vocabulary() -> None:
    (run,) = (r for r in CHOSEN if "32003" in r.geometry and r.way == "tensor")
    *others, last = [line["peak_allocated_bytes"] for line in RANKS[run]]
    *same, longest = simulate(run, first=RANKS[run][0])
    assert len({*others}) == len({*same}) == 1
    # Its part of the logits, padded; torch's allocator may leave 1 MiB of a block unused.
    assert longest - same[0] == 2 * 512 * 8001 * 2
    assert abs((longest - same[0]) - (last - others[0])) < 2**20


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.describe())
def test_what_transformers_can_not_run_is_refused(case: Case) -> None:
    reason = refuse(case)
    assert reason is not None
    # Rows of attention that don't make whole heads, or rows of experts that torch can't multiply.
    expected = {"is invalid for input of size": "heads can't", "16 bytes": "16 bytes"}
    assert [words in reason for error, words in expected.items() if error in REFUSED[case]] == [
        True
    ]
