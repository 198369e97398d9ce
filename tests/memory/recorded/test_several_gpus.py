"""GPUs that share a model, compared with what H200s and H100s showed."""

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
ON_FOUR = read_lines("several_gpus/four_h100s.jsonl")
FOUR = group_runs([line for line in ON_FOUR if "error" not in line])
# Each rank alone, with torch's fake process group in place of NCCL.
ALONE = read_lines("several_gpus/ranks.jsonl")
RANKS = group_runs([line for line in ALONE if "error" not in line])
REFUSED = find_refused(ON_FOUR) | find_refused(ALONE)
_TOLERANCE = 0.005
# Blocks that torch's allocator leaves undivided, which depend on where the driver places memory.
_PLACES = 0.002


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
    *(run for run in FOUR if run.batch_size == 4),
    *(run for run in RANKS if run.batch_size == 2 and 4 < run.num_gpus < 32),
    # The smallest peaks of 32 ranks are too small for MiBs that depend on threads while loading.
    *(run for run in RANKS if run.batch_size == 4 and run.num_gpus == 32),
]
# No experts are stacked on the GPU while they load, and routing does not matter.
EXACT = {
    run
    for run in CHOSEN
    if run.num_gpus >= 8 and run.way == "tensor" and not run.geometry.startswith("Mixtral")
}


@pytest.mark.parametrize(
    "run", CHOSEN, ids=lambda run: f"{run.geometry} {run.way} on {run.num_gpus}"
)
def test_gpus_showed_the_same_peaks(run: Run) -> None:
    measured = (RANKS | TWO | IN_FP8 | FOUR)[run]
    peaks = simulate(run, first=measured[0])
    assert [line["rank"] for line in measured] == [*range(len(peaks))]
    for line in measured:
        peak = line["peak_allocated_bytes"]
        tolerance = 0 if run in EXACT else _TOLERANCE
        assert abs(peaks[line["rank"]] - peak) <= tolerance * peak


def test_tensor_parallel_ranks_are_met_to_the_byte() -> None:
    assert {run.geometry.split(",")[0] for run in EXACT} == {
        "DeepSeek-V2-Lite",
        "gpt-oss-20b",
        "moonlight-16b-a3b",
    }


def test_the_last_of_four_gpus_needs_more_for_a_shorter_part_of_the_vocabulary() -> None:
    odd = [run for run in FOUR if "32003" in run.geometry and run.way == "tensor"]
    (run,) = (run for run in odd if not run.num_new_tokens)
    *others, last = [line["peak_allocated_bytes"] for line in FOUR[run]]
    *same, longest = simulate(run, first=FOUR[run][0])
    assert len({*others}) == len({*same}) == 1
    # Its part of the logits, padded; torch's allocator may leave 1 MiB of a block unused.
    assert longest - same[0] == last - others[0]
    assert abs(longest - same[0] - 2 * 512 * 8001 * 2) < 2**20


def test_ranks_that_run_alone_show_what_whole_runs_show() -> None:
    whole = TWO | FOUR
    both = [run for run in RANKS if run in whole]
    assert {run.num_gpus for run in both} == {2, 4}
    for run in both:
        for alone, line in zip(RANKS[run], whole[run], strict=True):
            peak = line["peak_allocated_bytes"]
            assert abs(alone["peak_allocated_bytes"] - peak) <= _PLACES * peak


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.describe())
def test_what_transformers_can_not_run_is_refused(case: Case) -> None:
    reason = refuse(case)
    assert reason is not None
    # Rows of attention that don't make whole heads, which come first, or rows of experts that torch
    # can't multiply.
    heads = dict.fromkeys(("is invalid for input of size", "Cannot evenly shard"), "heads can't")
    expected = heads | {"16 bytes": "16 bytes"}
    assert [words in reason for error, words in expected.items() if error in REFUSED[case]] == [
        True
    ]
