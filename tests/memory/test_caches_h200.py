"""Caches and a search with beams, compared with what an H200 showed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory.caches import prepare_case
from moetool.catalogue.gpus import read_gpus
from moetool.memory.gpu_overhead import find_workspace_bytes
from moetool.memory.simulated.runs import run_scenario

MEASURED = Path("benchmarks/memory/caches_h200.jsonl")
# To the byte.
FIGURES = ("weights_bytes", "cache_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


@pytest.mark.parametrize(
    "line", [json.loads(text) for text in MEASURED.read_text().splitlines()], ids=str
)
def test_an_h200_showed_the_same(line: dict[str, Any]) -> None:
    builder, scenario = prepare_case(line["model"], line["num_layers"], line["options"])
    run = run_scenario(
        builder.build(scenario),
        scenario,
        workspace_bytes=find_workspace_bytes(read_gpus()["h200"]),
        context_bytes=0,
    )
    figures = asdict(run.figures)
    assert {name: figures[name] for name in FIGURES} == {name: line[name] for name in FIGURES}
