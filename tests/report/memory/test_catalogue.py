"""The catalogue against a card, as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

import moetool
from moetool.catalogue.gpus import find_gpu
from moetool.memory.fitting.catalogue_fits import CatalogueFits
from moetool.memory.fitting.model_fit import ModelFit
from moetool.memory.scenario import Scenario
from moetool.report.memory.catalogue import render_csv, render_json, render_table_text
from moetool.report.renderer import View

GIB = 2**30
FITTING = ModelFit(
    "small-8x1b",
    params=6_900_000_000,
    active_params=1_300_000_000,
    weights_bytes=13 * GIB,
    fits=True,
    headroom_bytes=10 * GIB,
    longest_prompt_tokens=3840,
    is_whole_context=True,
)
PACKED = replace(
    FITTING,
    model="packed-20b",
    active_params=None,
    weights_basis="as-published",
    longest_prompt_tokens=None,
    is_whole_context=None,
    reason="The longest prompt is unknown: it takes too long.",
)
NEAR = ModelFit(
    "near-9b",
    params=9_000_000_000,
    weights_bytes=20 * GIB,
    fits=False,
    headroom_bytes=-2 * GIB,
    longest_prompt_tokens=100,
    is_whole_context=False,
)
FAR = ModelFit(
    "far-700b",
    params=700_000_000_000,
    weights_bytes=627 * GIB,
    fits=False,
    least_shortage_bytes=604 * GIB,
    longest_prompt_tokens=0,
    is_whole_context=False,
)
UNKNOWN = ModelFit("odd-1b", reason="transformers has no class for it.")
RESULT = CatalogueFits(find_gpu("rtx-4090"), Scenario(), (FITTING, PACKED, FAR, NEAR, UNKNOWN))
TERMINAL = View(width=80)


def test_the_table_lists_what_runs_and_sums_up_the_rest() -> None:
    text = render_table_text(RESULT, TERMINAL)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "2 of 5 models run on 1 × rtx-4090 (24.0 GiB); 1 is unknown."
    assert "run generate: 1 sequence of 2,048 prompt tokens and 256 new ones" in lines
    assert "small-8x1b 6.900B 1.300B 13.0 GiB 10.0 GiB 3,840 *" in lines
    assert "packed-20b 6.900B unknown 13.0 GiB 10.0 GiB unknown †" in lines
    words = " ".join(lines)
    assert (
        "2 models don't run; the nearest is near-9b, short by 2.0 GiB. --all lists them." in words
    )
    assert "No answer for odd-1b. --all shows why." in words
    assert "far-700b" not in words
    assert "* only the model's context limits the prompt" in words
    assert "† with its weights packed as published" in words
    assert "+ longer prompts" not in words


def test_a_view_of_all_lists_what_does_not_run_and_says_why() -> None:
    text = render_table_text(RESULT, replace(TERMINAL, lists_all=True))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    near, far = (
        next(index for index, line in enumerate(lines) if line.startswith(name))
        for name in ("near-9b", "far-700b")
    )
    assert near < far
    assert lines[near] == "near-9b 9.000B unknown 20.0 GiB 2.0 GiB"
    assert lines[far] == "far-700b 700.0B unknown 627.0 GiB at least 604.0 GiB"
    assert "odd-1b: transformers has no class for it." in lines
    assert "packed-20b: The longest prompt is unknown: it takes too long." in lines
    assert "--all" not in text


def test_nothing_that_runs_leaves_out_the_table() -> None:
    text = render_table_text(replace(RESULT, models=(FAR,)), TERMINAL)
    assert text.startswith(
        "far-700b doesn't run on 1 × rtx-4090 (24.0 GiB): short by at least 604.0 GiB.\n"
    )
    text = render_table_text(replace(RESULT, models=(FAR, FAR)), TERMINAL)
    assert "prompt:" not in text
    assert "2 models don't run; the nearest is far-700b, short by at least 604.0 GiB." in text


def test_the_reason_is_shown_where_the_only_model_is_unknown() -> None:
    text = render_table_text(replace(RESULT, models=(UNKNOWN,)), TERMINAL)
    assert "odd-1b: transformers has no class for it." in text.splitlines()
    assert "--all" not in text


@pytest.mark.parametrize(
    ("models", "verdict"),
    [
        ((FITTING,), "small-8x1b runs on 1 × rtx-4090 (24.0 GiB)."),
        ((UNKNOWN,), "Whether odd-1b runs on 1 × rtx-4090 (24.0 GiB) is unknown."),
        ((FITTING, FAR), "1 of 2 models runs on 1 × rtx-4090 (24.0 GiB)."),
        ((FAR, NEAR), "0 of 2 models run on 1 × rtx-4090 (24.0 GiB)."),
        ((UNKNOWN, UNKNOWN), "0 of 2 models run on 1 × rtx-4090 (24.0 GiB); 2 are unknown."),
    ],
)
def test_the_first_line_is_right_for_any_number(models: tuple[ModelFit, ...], verdict: str) -> None:
    assert render_table_text(replace(RESULT, models=models), TERMINAL).startswith(f"{verdict}\n")


def test_a_note_names_all_models_that_it_holds_for() -> None:
    note = "The context is 4,096 tokens: the run has 96 instead of 256 new tokens."
    models = (
        replace(FITTING, note=note),
        replace(PACKED, note=note),
        replace(NEAR, note=note),
        replace(FAR, note=note),
    )
    text = " ".join(render_table_text(replace(RESULT, models=models), TERMINAL).split())
    assert text.count(f"small-8x1b, packed-20b: {note}") == text.count("4,096") == 1
    view = replace(TERMINAL, lists_all=True)
    text = " ".join(render_table_text(replace(RESULT, models=models), view).split())
    assert text.count(f"small-8x1b, packed-20b, near-9b: {note}") == text.count("4,096") == 1


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("lists_all", [False, True])
def test_the_table_fits_the_width(width: int, lists_all: bool) -> None:
    text = render_table_text(RESULT, View(width=width, lists_all=lists_all))
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_headroom_and_shortages_are_coloured() -> None:
    text = render_table_text(RESULT, View(width=80, has_color=True, lists_all=True))
    assert "\x1b[32m10.0 GiB\x1b[0m" in text
    assert "\x1b[31m2.0 GiB\x1b[0m" in text
    assert text.startswith("\x1b[1m2 of 5 models run")


def test_json_has_every_model_with_exact_figures() -> None:
    value = json.loads(render_json(RESULT))
    assert (value["schema"], value["moetool"]) == ("moetool.fits/1", moetool.__version__)
    assert set(value["versions"]) == {"torch", "transformers"}
    assert (value["gpu"], value["memory_bytes"]) == ("rtx-4090", RESULT.gpu.memory_bytes)
    assert value["scenario"]["num_prompt_tokens"] == 2048
    assert value["num_fitting"] == 2
    assert [model["model"] for model in value["models"]] == [one.model for one in RESULT.models]
    for found, model in zip(value["models"], RESULT.models, strict=True):
        assert found == {**vars(model), "gpu": "rtx-4090"}


def test_csv_has_a_row_for_every_model() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(RESULT))))
    assert [row["model"] for row in rows] == [model.model for model in RESULT.models]
    assert [row["fits"] for row in rows] == ["True", "True", "False", "False", ""]
    assert rows[0]["headroom_bytes"] == str(10 * GIB)
    assert rows[-1]["reason"] == UNKNOWN.reason
