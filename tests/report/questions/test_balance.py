"""Balance as tables that fit a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pyarrow as pa
import pytest

from moetool.analysis.balance.measure import COLUMNS, measure_balance
from moetool.analysis.balance.result import FIGURES, Balance
from moetool.report.questions.balance import render_csv, render_json, render_table_text
from moetool.report.renderer import View
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, make_random_trace, open_rows

SKEWED = Router(num_experts=16, top_k=2, num_layers=3, popularity=(9, 7, 5, 4, *[1] * 11, 1e-6))
EVEN = Router(num_experts=8, top_k=2, num_layers=40)


def balance_of(table: pa.Table, router: Router) -> Balance:
    return measure_balance(DecisionReader(open_rows(table, router=router), columns=COLUMNS))


UNEVEN_RESULT = balance_of(
    make_random_trace([40] * 20, router=SKEWED, num_prompt_tokens=30), SKEWED
)
EVEN_RESULT = balance_of(make_random_trace([20] * 6, router=EVEN), EVEN)


def unwrap(text: str) -> str:
    """Return the text as one line, because a sentence may run over several."""
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("result", [UNEVEN_RESULT, EVEN_RESULT], ids=["uneven", "even"])
def test_the_page_fits_the_terminal(result: Balance, width: int) -> None:
    lines = render_table_text(result, View(width=width)).splitlines()
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []


def test_the_verdict_comes_first() -> None:
    text = unwrap(render_table_text(UNEVEN_RESULT, View(width=80)))
    assert text.startswith("The load is uneven in 3 of 3 layers, more than chance and")
    assert "3 of 48 experts are never chosen; a random router would leave out 0.0." in text


def test_an_even_router_is_not_called_uneven() -> None:
    text = unwrap(render_table_text(EVEN_RESULT, View(width=80)))
    assert text.startswith("In none of 40 layers is the load surely more uneven")
    assert "All 320 experts are chosen." in text


def test_a_single_prompt_does_not_support_a_verdict() -> None:
    result = balance_of(make_random_trace([60], router=SKEWED), SKEWED)
    text = unwrap(render_table_text(result, View(width=80)))
    assert text.startswith("Whether the load is uneven beyond these prompts is unknown")
    assert "fewer than two prompts" in text


def test_no_more_than_thirty_layers_are_listed_and_the_rest_is_counted() -> None:
    text = render_table_text(EVEN_RESULT, View(width=80))
    rows = [line for line in text.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert len([row for row in rows if row.split()[1].startswith("0.9")]) == 30
    assert "… and 10 more even layers: --format csv lists all" in text


def test_every_layer_has_a_line_with_its_figures() -> None:
    text = render_table_text(UNEVEN_RESULT, View(width=80))
    for layer in UNEVEN_RESULT.layers:
        (line,) = (
            line for line in text.splitlines() if line.startswith(f"{layer.layer} ") and "E" in line
        )
        words = line.split()
        assert words[1:3] == [f"{layer.entropy:.3f}", f"{layer.cv:.2f}"]
        assert words[5] == f"{1 + (layer.max_violation or 0):.2f}"
        assert words[7] == str(len(layer.dead))
        assert words[8] == f"E{layer.hot[0].expert}"


def test_groups_and_phases_have_a_line_each() -> None:
    text = render_table_text(UNEVEN_RESULT, View(width=80))
    for name in ("code", "prose", "prefill", "decode"):
        assert f"\n{name} " in text


def test_of_many_groups_the_least_even_are_listed_and_the_rest_is_counted() -> None:
    parts = [
        replace(UNEVEN_RESULT.parts[0], name=f"g{number}", cv=number / 10) for number in range(30)
    ]
    text = render_table_text(replace(UNEVEN_RESULT, parts=tuple(parts)), View(width=80))
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("g")]
    assert shown == [f"g{number}" for number in range(29, 17, -1)]
    assert "… and 18 with a smaller cv: --format csv lists all" in text


def test_the_legend_explains_every_column() -> None:
    text = unwrap(render_table_text(UNEVEN_RESULT, View(width=80)))
    legend = text[text.index("entropy: of the experts") :]
    for word in ("cv", "random", "prompts", "max", "dead", "hot", "capacity", "dropped", "first"):
        assert f"{word}:" in legend or f"{word}," in legend, word


def test_json_has_the_documented_keys() -> None:
    value = json.loads(render_json(UNEVEN_RESULT), parse_constant=pytest.fail)
    assert value["schema"] == "moetool.balance/1"
    assert value["trace"]["num_assignments"] == 20 * 40 * 2 * 3
    for layer in value["layers"]:
        assert list(layer)[:5] == ["stack", "layer", "num_experts", "top_k", "num_tokens"]
        assert {"load", *FIGURES} <= set(layer)
        assert {"load", *FIGURES} <= set(layer["baseline"])
        assert sum(layer["load"]) == layer["num_tokens"] * layer["top_k"]
    assert [(each["factor"], each["policy"]) for each in value["capacity"]] == [
        (factor, policy)
        for policy in ("position", "probability")
        for factor in (1.0, 1.25, 1.5, 2.0)
    ]
    for each in value["capacity"]:
        assert {"tokens_per_batch", "dropped_share", "by_position", "baseline"} <= set(each)
        assert len(each["by_position"]) == 10


def test_csv_has_a_row_for_each_layer_and_part() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(UNEVEN_RESULT))))
    assert len(rows) == 3 * (1 + 2 + 2)
    for layer in UNEVEN_RESULT.layers:
        (row,) = [
            each for each in rows if each["part"] == "all" and int(each["layer"]) == layer.layer
        ]
        assert float(row["cv"]) == layer.cv
        assert float(row["random_cv"]) == layer.baseline.cv


def test_a_layer_that_ran_no_expert_is_shown_with_dashes() -> None:
    idle = replace(
        UNEVEN_RESULT.layers[0],
        layer=7,
        entropy=None,
        cv=None,
        max_violation=None,
        prompt_cv=None,
        is_uneven=None,
    )
    text = render_table_text(replace(UNEVEN_RESULT, layers=(idle,)), View(width=80))
    assert text.startswith("No expert ran in any layer.")
    (line,) = (line for line in text.splitlines() if line.startswith("7 "))
    assert line.split()[1:3] == ["–", "–"]


def test_hostile_names_cannot_steer_a_terminal() -> None:
    part = replace(UNEVEN_RESULT.parts[0], name="\x1b[31mred\n")
    result = replace(UNEVEN_RESULT, parts=(part,), by="\x1b]0;x")
    assert "\x1b" not in render_table_text(result, View(width=80))
