"""Results as a library user sees them: the names and values of the reports, frames and reprs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetool
from moetool import Scenario
from moetool.anatomy.parameters import ActiveRange
from moetool.errors import UsageError
from moetool.inspection.result import Inspection
from moetool.memory.result import Estimate
from moetool.plain import Tabular, make_plain
from moetool.report.inspect import data as inspect_report
from moetool.report.inspect import summary as summary_report
from moetool.report.memory import data as memory_report
from moetool.report.questions.specialize import render_csv as render_specialize_csv
from moetool.report.questions.specialize import render_json as render_specialize_json
from moetool.report.renderer import View
from moetool.trace.facts import describe_trace
from tests.report.examples import make_counts, make_result
from tests.report.inspect.inspections import FILES, FLOPS, make_inspection, make_reported
from tests.report.memory.estimates import LIMITS, OFFLOAD, SPEED, make_estimate, make_full_estimate

SPECIALIZATION = make_result(make_counts(["code", "prose"]))
FACTS = describe_trace(None, path="trace.parquet", num_prompts=6, num_tokens=9, num_assignments=18)

# Long enough for every headline, and a thousandth of a result's fields.
LONGEST_REPR = 160


@pytest.fixture(scope="module")
def inspected() -> Inspection:
    return moetool.inspect_model("demo")


@pytest.fixture(scope="module")
def estimated() -> Estimate:
    scenario = Scenario(num_prompt_tokens=16, num_new_tokens=4)
    (estimate,) = moetool.estimate_memory("demo", [scenario], gpu="rtx-4090")
    return estimate


def list_differences(value: object, found: Any, path: str = "") -> list[str]:
    """Return where JSON has a name that a result lacks, or another value under the same name."""
    if isinstance(value, dict):
        differences = []
        for name, item in value.items():
            place = f"{path}.{name}"
            if isinstance(found, Mapping) and name in found:
                differences += list_differences(item, found[name], place)
            elif not isinstance(found, Mapping) and hasattr(found, name):
                differences += list_differences(item, getattr(found, name), place)
            else:
                differences.append(f"{place} is missing")
        return differences
    if isinstance(value, list):
        assert len(value) == len(found), path
        pairs = enumerate(zip(value, found, strict=True))
        return [
            line
            for i, (one, other) in pairs
            for line in list_differences(one, other, f"{path}[{i}]")
        ]
    # A single number in JSON; here a range, which knows its number.
    plain = make_plain(found.exact if isinstance(found, ActiveRange) else found)
    return [] if plain == value else [f"{path} is {plain!r} here and {value!r} in JSON"]


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def spell(value: object) -> str:
    return "" if value is None else str(value)


def test_the_walk_finds_a_name_and_a_value_that_differ() -> None:
    model = make_inspection()
    value = {"model": "other", "params": 1, "parameters": {"bytes": 1}}
    assert [line.split()[0] for line in list_differences(value, model)] == [
        ".model",
        ".params",
        ".parameters.bytes",
    ]


def test_every_name_in_the_json_of_inspect_is_an_attribute_with_that_value(
    inspected: Inspection,
) -> None:
    by_hand = make_inspection(files=FILES, flops=FLOPS)
    for model in (inspected, by_hand, make_reported()):
        text = inspect_report.render_json([model], View(per_layer=True))
        (value,) = json.loads(text)["models"]
        assert list_differences(value, model) == []
        assert value == model.to_dict(per_layer=True)
        assert set(value) - set(model.to_dict()) == {"rows"}


def test_every_name_in_the_json_of_memory_estimate_is_an_attribute_with_that_value(
    estimated: Estimate,
) -> None:
    by_hand = replace(
        make_full_estimate(),
        limits=replace(LIMITS, gpu="small"),
        offload=replace(OFFLOAD, gpu="small"),
        speed=replace(SPEED, gpu="small"),
    )
    for estimate in (estimated, by_hand, make_estimate(peaks=(), fits=())):
        (value,) = json.loads(memory_report.render_json([estimate]))["estimates"]
        assert list_differences(value, estimate) == []
        assert value == estimate.to_dict()
    assert estimated.limits is not None
    assert estimated.limits.gpu == "rtx-4090"


def test_every_name_in_the_json_of_specialize_is_an_attribute_with_that_value() -> None:
    result = replace(SPECIALIZATION, trace=FACTS)
    value = json.loads(render_specialize_json(result))
    del value["schema"], value["moetool"]
    assert list_differences(value, result) == []
    assert value == result.to_dict()
    assert value["trace"]["trace"] == FACTS.trace


def test_every_csv_column_of_inspect_is_an_attribute_and_a_name_in_the_json() -> None:
    model = make_inspection(files=FILES)
    rows = read_rows(inspect_report.render_csv([model]))
    objects = model.to_dict(per_layer=True)["rows"]
    assert len(rows) == len(model.rows) == len(objects)
    for row, found, value in zip(rows, model.rows, objects, strict=True):
        assert row.pop("model") == model.model
        assert {name: spell(getattr(found, name)) for name in row} == row
        assert {name: spell(value[name]) for name in row} == row


def test_sums_of_csv_columns_have_their_names_among_the_parameters(inspected: Inspection) -> None:
    frame, parameters = inspected.to_frame(), inspected.parameters
    assert parameters is not None
    for name in ("params", "active_params", "active_params_min", "active_params_max", "bytes"):
        assert frame[name].sum() == getattr(parameters, name) == parameters.to_dict()[name], name


def test_every_csv_column_of_memory_estimate_is_an_attribute_and_a_name_in_the_json(
    estimated: Estimate,
) -> None:
    for estimate in (estimated, make_full_estimate()):
        (row,) = read_rows(memory_report.render_csv([estimate]))
        value = estimate.to_dict()
        for column, cell in row.items():
            found, described = _resolve(estimate, value, column)
            assert spell(make_plain(found)) == spell(described) == cell, column


def _resolve(estimate: Estimate, value: dict[str, Any], column: str) -> tuple[object, object]:
    """Return the value of a column in a result and in its JSON: at_peak_phase is at_peak.phase."""
    for part in ("at_peak", "measured"):
        name = column.removeprefix(f"{part}_")
        if name != column:
            return getattr(getattr(estimate, part), name, None), (value[part] or {}).get(name)
    if column in value["scenario"]:
        return getattr(estimate.scenario, column), value["scenario"][column]
    return getattr(estimate, column), value[column]


def test_every_csv_column_of_specialize_is_an_attribute_and_a_name_in_the_json() -> None:
    result = SPECIALIZATION
    rows = read_rows(render_specialize_csv(result))
    for row, cell, value in zip(rows, result.experts, result.to_dict()["experts"], strict=True):
        assert {name: spell(getattr(cell, name)) for name in row} == row
        assert {name: spell(value[name]) for name in row} == row


def test_frames_have_the_columns_and_values_of_the_csv_report(estimated: Estimate) -> None:
    specialization = SPECIALIZATION
    for result, text in (
        (make_inspection(files=FILES), inspect_report.render_csv([make_inspection(files=FILES)])),
        (estimated, memory_report.render_csv([estimated])),
        (specialization, render_specialize_csv(specialization)),
    ):
        frame = result.to_frame()
        rows = read_rows(text)
        assert list(frame) == list(rows[0])
        written = read_rows(frame.to_csv(index=False))
        assert [list(row.values()) for row in written] == [list(row.values()) for row in rows]


def test_unknown_whole_numbers_leave_the_others_whole() -> None:
    frame = make_inspection().to_frame()
    assert str(frame["layer"].dtype) == str(frame["file_params"].dtype) == "Int64"
    assert frame["layer"].isna().any()
    assert frame["file_params"].isna().all()
    assert frame.groupby("layer")["params"].sum().loc[1] == 1_641_000


def test_several_results_make_one_frame_whose_dtypes_are_those_of_each() -> None:
    scenarios = [Scenario(batch_size=size) for size in (1, 8)]
    estimates = [make_estimate(scenario=scenario, peaks=()) for scenario in scenarios]
    frame = moetool.to_frame(estimates)
    assert frame["batch_size"].tolist() == [1, 8]
    pd.testing.assert_series_equal(frame.dtypes, make_full_estimate().to_frame().dtypes)
    pd.testing.assert_frame_equal(moetool.to_frame(estimates[0]), estimates[0].to_frame())
    pd.testing.assert_frame_equal(
        frame, pd.concat([each.to_frame() for each in estimates], ignore_index=True)
    )


def test_a_summary_has_one_row_for_each_model_as_the_command_prints_it() -> None:
    flops = replace(FLOPS, decode=2_500_000.0)
    models = [make_inspection(files=FILES, flops=flops), make_reported()]
    frame = moetool.to_frame(models, summary=True)
    rows = read_rows(summary_report.render_csv(models))
    assert list(frame) == list(rows[0])
    assert read_rows(frame.to_csv(index=False)) == rows
    assert frame["params"].tolist()[0] == models[0].to_frame()["params"].sum()
    assert str(frame["num_experts"].dtype) == "Int64"
    with pytest.raises(UsageError, match="kind Estimate have no summary"):
        moetool.to_frame(make_estimate(), summary=True)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "There are no results to make a frame of."),
        ("mixtral-8x7b", "Results of the kind str have no rows."),
        ([make_inspection(), make_estimate()], "Inspection and Estimate have different columns."),
        ([make_inspection(), 1], "Results of the kind int have no rows."),
    ],
)
def test_what_makes_no_frame_is_refused(results: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        moetool.to_frame(results)
    assert caught.value.message == message
    assert "measure_specialization or find_fitting_models" in caught.value.hint


def test_layers_and_domains_of_a_specialization_are_frames_too() -> None:
    result = SPECIALIZATION
    layers, domains = result.to_frame("layers"), result.to_frame("domains")
    assert layers["p_value"].tolist() == [layer.p_value for layer in result.layers]
    assert domains["tokens"].tolist() == [size.tokens for size in result.domains]
    with pytest.raises(UsageError, match="table of a specialization can't be 'rows'"):
        result.to_frame("rows")  # type: ignore[arg-type]


def test_a_repr_is_a_headline(inspected: Inspection, estimated: Estimate) -> None:
    assert repr(inspected) == (
        "<Inspection demo: 2.924M parameters, 1.155M active, top-2 of 8 experts>"
    )
    assert repr(make_reported()) == "<Inspection closed-1: reported 1.6–1.8T parameters>"
    assert repr(estimated).startswith(
        "<Estimate demo, 1 × 16 + 4 tokens: peak 19.7 MiB allocated; rtx-4090: fits, "
    )
    short = make_estimate(
        fits=(replace(make_estimate().fits[0], headroom_bytes=-(2**30), fits=False),)
    )
    assert repr(short).endswith("; big: doesn't fit, short by 1.0 GiB>")
    assert "peak unknown" in repr(
        make_estimate(figures=replace(short.figures, peak_allocated_bytes=None))
    )
    result = replace(SPECIALIZATION, trace=replace(FACTS, trace="t.parquet"))
    assert repr(result).startswith(f"<Specialization of t.parquet: {len(result.domains)} domains, ")


def test_a_name_that_would_steer_a_terminal_is_escaped_in_a_repr() -> None:
    name = "a\x1b[2J\n"
    for value in (
        make_inspection(model=name),
        make_estimate(model=name),
        replace(SPECIALIZATION, trace=replace(FACTS, trace=name)),
    ):
        assert repr(value).isprintable()


def test_no_part_of_a_result_prints_pages(inspected: Inspection, estimated: Estimate) -> None:
    result = SPECIALIZATION
    for value in (inspected, estimated, result):
        assert len(repr(value)) <= LONGEST_REPR
    model = moetool.inspect_model("deepseek-v3")
    for part in (model, model.anatomy, model.parameters, model.flops, model.published):
        assert len(repr(part)) <= 1_000, repr(part)
    assert len(repr(model)) <= LONGEST_REPR
    assert "routed_layers=<58 items>" in repr(model.anatomy)


def test_values_of_a_dict_are_plain(inspected: Inspection, estimated: Estimate) -> None:
    for value in (
        inspected.to_dict(per_layer=True),
        estimated.to_dict(),
        SPECIALIZATION.to_dict(),
    ):
        assert _find_types(value) <= {dict, list, str, int, float, bool, type(None)}


def _find_types(value: object) -> set[type]:
    if isinstance(value, dict):
        return {dict}.union(*map(_find_types, value), *map(_find_types, value.values()))
    if isinstance(value, list):
        return {list}.union(*map(_find_types, value))
    return {type(value)}


def test_every_tabular_result_is_frozen() -> None:
    for result in (make_inspection(), make_estimate(), SPECIALIZATION):
        assert isinstance(result, Tabular)
        with pytest.raises(FrozenInstanceError):
            result.notes = ()  # type: ignore[misc]


def test_values_of_numpy_become_plain() -> None:
    value = {
        np.int64(3): [np.int64(1), np.float32("nan"), np.float32(0.5), np.bool_(True)],
        "rows": np.array([[1.0, np.inf]]),
        "word": np.str_("a"),
    }
    plain = make_plain(value)
    assert plain == {3: [1, None, 0.5, True], "rows": [[1.0, None]], "word": "a"}
    assert _find_types(plain) <= {dict, list, str, int, float, bool, type(None)}
    assert {type(name) for name in plain} == {int, str}
