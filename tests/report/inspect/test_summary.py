"""One row for each inspected model."""

from __future__ import annotations

import csv
import io
import json

from moetool import inspect_model
from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveDefinition
from moetool.inspection.result import Inspection, Source
from moetool.report.inspect.summary import render_csv, render_json, render_table_text
from moetool.report.renderer import View
from tests.report.inspect.inspections import make_inspection

MIXTRAL = inspect_model("mixtral-8x7b")
COLUMNS = tuple(Inspection.summary_types())


def test_a_row_has_the_figures_of_the_page() -> None:
    row = MIXTRAL.to_summary()
    assert tuple(row) == COLUMNS
    assert (row["model"], row["source"], row["model_type"]) == (
        "mixtral-8x7b",
        "skeleton",
        "mixtral",
    )
    parameters, flops = MIXTRAL.parameters, MIXTRAL.flops
    assert parameters is not None
    assert flops is not None
    assert row["params"] == parameters.total == 46_702_792_704
    assert row["active_params"] == row["active_params_min"] == row["active_params_max"]
    assert row["active_params"] == 12_879_925_248
    for definition in list(ActiveDefinition)[1:]:
        active = parameters.active[definition]
        assert active is not None
        assert row[f"active_params_{definition}"] == active.exact
    assert sum(row[f"{name}_params"] for name in Component) == row["params"]
    assert row["bytes"] == parameters.num_bytes
    assert (row["num_layers"], row["num_moe_layers"]) == (32, 32)
    assert (row["num_experts"], row["num_experts_min"], row["top_k"]) == (8, 8, 2)
    assert row["context_length"] == 32_768
    assert row["prefill_flops_per_token"] == flops.prefill
    assert row["decode_flops_per_token"] == flops.decode
    assert (row["published_total_b"], row["published_active_b"]) == ("46.7", "12.9")
    assert row["quantization"] is None


def test_figures_that_differ_between_layers_have_their_range() -> None:
    row = make_inspection(num_experts=(64, 128, 64), top_k=(4, None, 4)).to_summary()
    assert (row["num_experts"], row["num_experts_min"], row["num_experts_max"]) == (None, 64, 128)
    assert (row["top_k"], row["top_k_min"], row["top_k_max"]) == (None, None, None)


def test_what_is_unknown_is_empty() -> None:
    row = Inspection("nothing", Source.HEADERS).to_summary()
    assert {name for name, value in row.items() if value is not None} == {"model", "source"}
    (cells,) = csv.DictReader(io.StringIO(render_csv([Inspection("nothing", Source.HEADERS)])))
    assert (cells["model"], cells["params"]) == ("nothing", "")


def test_reported_figures_are_quoted() -> None:
    row = inspect_model("glam-64b-64e").to_summary()
    assert (row["reported_total"], row["reported_active"], row["params"]) == ("1.2T", "96.6B", None)


def test_every_format_has_one_entry_for_each_model() -> None:
    models = [MIXTRAL, inspect_model("gpt-4")]
    rows = list(csv.DictReader(io.StringIO(render_csv(models))))
    assert [row["model"] for row in rows] == ["mixtral-8x7b", "gpt-4"]
    assert tuple(rows[0]) == COLUMNS
    value = json.loads(render_json(models))
    assert value["schema"] == "moetool.inspect-summary/1"
    first, second = value["models"]
    assert first["params"] == int(rows[0]["params"])
    assert second["notes"] == list(models[1].notes)
    text = render_table_text(models[:1], View(width=80))
    assert text.split()[0] == "mixtral-8x7b"
    assert "active, all" in text
