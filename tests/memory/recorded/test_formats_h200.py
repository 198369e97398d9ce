"""Checkpoints in published formats, as transformers loaded and ran them on an H200, against simulations."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks.memory.formats import read_cut_config
from moetool import Scenario
from tests.memory.saved_configs import make_runs

MEASURED = Path(__file__).parents[3] / "benchmarks/memory/measured/formats/h200.jsonl"
# Of weights in mxfp4, the allocator held 0.08 % more than their bytes; fp8 to the byte.
WEIGHTS_TOLERANCE = {"mxfp4": 0.001, "fp8": 0.0}
# What a run takes in addition to the weights.
ABOVE_TOLERANCE_BYTES = 2 * 2**20
LINES = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
CASES = {name: list(lines) for name, lines in groupby(LINES, key=lambda line: line["model"])}


@pytest.mark.parametrize("name", CASES)
def test_packed_weights_take_what_they_took(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(read_cut_config(name)), encoding="utf-8")
    runs = make_runs(str(tmp_path))

    for line in CASES[name]:
        run = runs.run(Scenario(**line["options"]))
        assert run is not None
        found = run.figures.show()
        tolerance = WEIGHTS_TOLERANCE[line["stored_as"]]
        assert found.weights_bytes == pytest.approx(line["weights_bytes"], rel=tolerance, abs=0)
        peak = found.peak_allocated_bytes
        assert found.weights_bytes is not None
        assert peak is not None
        above = peak - found.weights_bytes
        took = line["peak_allocated_bytes"] - line["weights_bytes"]
        assert above == pytest.approx(took, rel=0, abs=ABOVE_TOLERANCE_BYTES), line["options"]
