"""Buffers for GGUF files are those that llama.cpp reported, on the CPU and on a stand-in for a GPU."""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moetool.checkpoint.gguf.files import open_gguf
from moetool.memory.serving.ggml.families import ARCHITECTURES
from moetool.memory.serving.gguf.buffers import DeviceRules, GgufRun, list_buffers
from moetool.memory.serving.gguf.placement import LayerRule, make_moves
from tests.command import REPOSITORY

_RECEIPTS = REPOSITORY / "benchmarks" / "gguf" / "measured" / "llama_cpp_devices.jsonl"
# Printed sizes have two decimals.
ROUNDED_MIB = 0.0051
# Two halves of a cache are printed in one line each.
TWICE_ROUNDED_MIB = 0.0101


@cache
def read_receipts() -> list[dict[str, Any]]:
    """Return the lines; one whose file is that of the line before has no header."""
    lines = [json.loads(line) for line in _RECEIPTS.read_text().splitlines()]
    for before, line in pairwise(lines):
        line["header"] = line["header"] or before["header"]
    return lines


def test_receipts_have_every_family_and_division() -> None:
    lines = read_receipts()
    assert {line["family"] for line in lines} == set(ARCHITECTURES)
    assert {line["mixture"] for line in lines} == {"f16", "q4_K_M", "q8_0", "iq", "mxfp4", "mtp"}
    assert {line["setting"][0] for line in lines} == {-1, 0, 2, 3, 4, 99}
    assert len(lines) == 344


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_buffers_are_those_that_llama_cpp_reports(family: str, tmp_path: Path) -> None:
    checked = 0
    for line in read_receipts():
        if line["family"] != family:
            continue
        path = tmp_path / f"{line['mixture']}.gguf"
        if not path.exists():
            with path.open("wb") as file:
                file.write(zlib.decompress(base64.b64decode(line["header"])))
                file.truncate(line["file_bytes"])
        layers, cpu_moe, context, ubatch, sequences, type_k, type_v, takes = line["setting"]
        run = GgufRun(
            LayerRule(max(layers, 0), make_moves(cpu_moe)),
            context=context,
            ubatch=ubatch,
            num_sequences=sequences,
            type_k=type_k,
            type_v=type_v,
            has_gpu=layers >= 0,
        )
        # The stand-in's memory is a CPU's, and the host has no pinned memory for it.
        rules = DeviceRules(
            alignment=32, pads_rows=False, takes_products=takes, has_pinned_memory=False
        )
        on_gpu, on_host = list_buffers(open_gguf(path), run, rules)
        expected = {
            "model GPU": on_gpu.weights,
            "KV GPU": on_gpu.cache,
            "compute GPU": on_gpu.compute,
            "model CPU_Mapped": on_host.weights,
            "model CPU_REPACK": on_host.repacked,
            "KV CPU": on_host.cache,
            "compute CPU": on_host.compute,
            "output CPU": on_host.output,
        }
        assert set(line["mib"]) <= set(expected)
        for name, size in expected.items():
            assert size is not None
            slack = TWICE_ROUNDED_MIB if name.startswith("KV") else ROUNDED_MIB
            printed = pytest.approx(line["mib"].get(name, 0), abs=slack)
            assert size / 2**20 == printed, (name, line["mixture"], line["setting"])
        checked += 1
    assert checked >= 29
