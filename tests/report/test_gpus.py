"""The known GPUs as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields

from moetool.catalogue.gpus import Gpu, list_gpus, read_gpus
from moetool.report.gpus import RENDERERS, render_csv, render_json, render_table_text
from moetool.report.renderer import ReportFormat, View

SOME = [read_gpus()[name] for name in ("t4", "h200", "mi325x")]


def test_a_few_gpus_are_shown_like_this() -> None:
    assert render_table_text(SOME).startswith(
        """\
name         memory    GB/s    bf16     fp8   architecture   vendor
───────────────────────────────────────────────────────────────────
t4         15.0 GiB     320       –       –   turing         NVIDIA
h200      140.4 GiB   4,800     990   1,979   hopper         NVIDIA
mi325x   238.4 GiB*   6,000   1,307   2,615   cdna3          AMD

3 GPUs.
"""
    )


def test_every_known_gpu_has_a_row_that_fits() -> None:
    lines = render_table_text(list_gpus(), View(width=80)).splitlines()
    assert {line.split()[0] for line in lines if line} >= set(read_gpus())
    assert max(map(len, lines)) <= 80


def test_json_has_every_field_with_all_names() -> None:
    value = json.loads(render_json(SOME))
    assert list(value) == ["schema", "moetool", "gpus", "notes"]
    assert value["schema"] == "moetool.gpus/1"
    assert {frozenset(gpu) for gpu in value["gpus"]} == {
        frozenset(field.name for field in fields(Gpu))
    }
    assert value["gpus"][0] == {**asdict(SOME[0]), "aliases": ["tesla-t4"]}
    assert value["gpus"][0]["bf16_flops_per_s"] is None
    assert len(value["notes"]) == 1


def test_csv_has_a_row_each_with_unknown_figures_left_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(SOME))))
    assert [row["id"] for row in rows] == ["t4", "h200", "mi325x"]
    assert rows[0]["fp8_flops_per_s"] == ""
    assert rows[1]["aliases"] == "h200-sxm;h200-141gb"
    assert int(rows[1]["memory_bytes"]) == SOME[1].memory_bytes


def test_without_any_gpu_there_is_an_empty_list() -> None:
    assert "0 GPUs." in RENDERERS[ReportFormat.TABLE]([])
    assert json.loads(RENDERERS[ReportFormat.JSON]([]))["gpus"] == []
