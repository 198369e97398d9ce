"""JSON and CSV of hand-made inspections: unrounded and complete."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pandas as pd
import pytest

import moetool
from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.inspection.rows import pair_row
from moetool.inspection.summary import summarize
from moetool.report.inspect.data import RENDERERS, render_csv, render_json
from moetool.report.renderer import ReportFormat, View
from tests.report.inspect.inspections import FILES, make_inspection, make_reported, make_table

# Of the schema that is promised, in its order; whatever else there is comes after.
MODEL_KEYS = [
    *("model", "model_type", "source", "num_layers", "num_moe_layers", "num_experts", "top_k"),
    *("num_shared_experts", "parameters", "notes"),
]
PARAMETER_KEYS = ["total", "active", "components"]


def test_json_begins_with_the_promised_keys_in_their_order() -> None:
    value = json.loads(render_json([make_inspection(notes=("A note.",))]))
    assert list(value) == ["schema", "moetool", "versions", "models"]
    assert (value["schema"], value["moetool"]) == ("moetool.inspect/1", moetool.__version__)
    (model,) = value["models"]
    assert list(model)[: len(MODEL_KEYS)] == MODEL_KEYS
    parameters = model["parameters"]
    assert list(parameters)[: len(PARAMETER_KEYS)] == PARAMETER_KEYS
    assert list(parameters["active"]) == [definition.value for definition in ActiveDefinition]
    assert list(parameters["components"]) == [component.value for component in Component]
    assert model["notes"] == ["A note."]


def test_json_holds_plain_integers_that_add_up() -> None:
    text = render_json([make_inspection()], View(per_layer=True))
    (model,) = json.loads(text)["models"]
    parameters = model["parameters"]
    assert parameters["total"] == make_table().total == 5_223_300
    assert sum(parameters["components"].values()) == parameters["total"]
    assert sum(row["params"] for row in model["rows"]) == parameters["total"]
    assert sum(row["active_params"] for row in model["rows"]) == parameters["active"]["all"]
    assert parameters["components"]["vision"] == 0
    assert '"total": 5223300,' in text
    numbers = [*parameters["components"].values(), *parameters["active"].values()]
    assert all(type(number) is int for number in numbers)


def test_rows_are_in_the_json_only_if_asked_for() -> None:
    (model,) = json.loads(render_json([make_inspection()]))["models"]
    assert "rows" not in model


def test_counts_that_differ_between_tokens_are_null_with_their_range() -> None:
    table = make_table()
    rows = tuple(
        replace(row, active=ActiveRange(100_000, 400_000))
        if row.component is Component.ROUTED_EXPERTS
        else row
        for row in table.rows
    )
    table = replace(table, rows=rows)
    inspection = make_inspection(
        parameters=summarize(table), rows=tuple(pair_row(row, None) for row in table.rows)
    )
    (model,) = json.loads(render_json([inspection]))["models"]
    assert model["parameters"]["active"]["all"] is None
    assert model["parameters"]["active_range"]["all"] == {"fewest": 723_300, "most": 1_623_300}
    experts = [
        row
        for row in csv.DictReader(io.StringIO(render_csv([inspection])))
        if row["component"] == "routed_experts"
    ]
    assert {row["active_params"] for row in experts} == {""}
    assert {row["active_params_min"] for row in experts} == {"100000"}
    assert {row["active_params_max"] for row in experts} == {"400000"}


def test_experts_that_differ_between_layers_are_a_list() -> None:
    inspection = make_inspection(num_experts=(8, None, 16), top_k=(2, 2, 4))
    (model,) = json.loads(render_json([inspection]))["models"]
    assert (model["num_experts"], model["top_k"]) == ([8, None, 16], [2, 2, 4])


def test_a_number_that_is_not_finite_is_null_because_json_has_no_word_for_it() -> None:
    parameters = make_inspection().parameters
    assert parameters is not None
    inspection = make_inspection(parameters=replace(parameters, sparsity=float("nan")))
    (model,) = json.loads(render_json([inspection]), parse_constant=lambda word: pytest.fail(word))[
        "models"
    ]
    assert model["parameters"]["sparsity"] is None


def test_a_reported_system_has_no_parameters_and_no_rows() -> None:
    (model,) = json.loads(render_json([make_reported()], View(per_layer=True)))["models"]
    assert (model["parameters"], model["rows"], model["num_layers"]) == (None, [], None)
    assert model["reported"]["total"] == "1.6–1.8T"
    assert model["notes"][0] == "Reported, never computed."
    assert render_csv([make_reported()], View(per_layer=True)).count("\n") == 1


def test_pandas_reads_the_columns_of_csv_as_integers_that_add_up() -> None:
    models = [make_inspection(), make_inspection(model="other", num_layers=7)]
    table = pd.read_csv(io.StringIO(render_csv(models)))
    assert table.columns[:4].tolist() == ["model", "stack", "layer", "component"]
    for column in ("params", "active_params", "bytes"):
        assert table[column].dtype == "int64"
    totals = table.groupby("model")["params"].sum()
    assert totals["small-4x"] == make_table().total
    assert totals["other"] == make_table(num_layers=7).total
    assert (table["bytes"] == 2 * table["params"]).all()


def test_csv_has_a_row_for_every_layer_and_component() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv([make_inspection()]))))
    assert [(row["layer"], row["component"]) for row in rows] == [
        ("" if row.layer is None else str(row.layer), row.component.value)
        for row in make_table().rows
    ]


def test_a_small_csv_is_this_one() -> None:
    text = render_csv([make_inspection(num_layers=1)])
    assert text == (
        "model,stack,layer,component,params,active_params,active_params_min,active_params_max,"
        "dtype,bytes,file_params,file_dtype,file_bytes\n"
        "small-4x,decoder,,embedding,100000,100000,100000,100000,bfloat16,200000,,,\n"
        "small-4x,decoder,0,mixer,40000,40000,40000,40000,bfloat16,80000,,,\n"
        "small-4x,decoder,0,dense_mlp,60000,60000,60000,60000,bfloat16,120000,,,\n"
        "small-4x,decoder,0,norm,200,200,200,200,bfloat16,400,,,\n"
        "small-4x,decoder,,norm,100,100,100,100,bfloat16,200,,,\n"
        "small-4x,decoder,,lm_head,100000,100000,100000,100000,bfloat16,200000,,,\n"
    )


def test_files_and_their_differences_are_in_the_json() -> None:
    (model,) = json.loads(render_json([make_inspection(files=FILES)]))["models"]
    assert model["files"]["num_bytes"] == FILES.num_bytes
    assert model["files"]["dtype_bytes"] == dict(FILES.dtype_bytes)
    (difference,) = model["files"]["differences"]
    assert difference["file_params"] == 24


@pytest.mark.parametrize("form", ReportFormat)
def test_a_path_that_is_not_unicode_can_be_written(form: ReportFormat) -> None:
    inspection = make_inspection(model="caf\udce9")
    for models in ([inspection], [inspection, inspection]):
        text = RENDERERS[form](models)
        assert "caf" in text.encode().decode()
