"""Placements as pages that fit a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.result import Change, Direction, Placement
from moetool.report.questions.place import (
    render_csv,
    render_json,
    render_table_text,
    render_vllm_advice,
)
from moetool.report.renderer import View
from tests.report.examples import make_placement

RESULTS = {
    "one node": make_placement(Cluster(4)),
    "nodes and replicas": make_placement(Cluster(8, 2, 8)),
    "unknown": make_placement(Cluster(4), tokens_per_batch=10_000, hidden_size=None),
}


def unwrap(text: str) -> str:
    """Return the text as one line, because a sentence may run over several."""
    return " ".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", RESULTS)
def test_the_page_fits_the_terminal(name: str, width: int) -> None:
    lines = render_table_text(RESULTS[name], View(width=width)).splitlines()
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []


def change_everything(result: Placement, change: Change | None) -> Placement:
    """Return a result in which every change is a given one."""
    methods = {
        name: found and replace(found, fan_out_change=change, batch_imbalance_change=change)
        for name, found in result.methods.items()
    }
    return replace(result, methods=methods)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            Change(-0.2, -0.3, -0.1, Direction.DOWN),
            ("makes batches more even", "to fewer GPUs", "-20.0%"),
        ),
        (
            Change(0.2, 0.1, 0.3, Direction.UP),
            ("makes batches less even", "to more GPUs", "+20.0%"),
        ),
        (
            Change(0.2, -0.1, 0.3, Direction.NONE),
            ("leaves batches as even", "to about as many GPUs", "+20.0%"),
        ),
        (Change(-0.2, None, None, Direction.UNKNOWN), ("has a busiest GPU of ", " GPUs, not ")),
    ],
)
def test_the_verdict_says_what_the_intervals_support(
    change: Change, words: tuple[str, ...]
) -> None:
    result = change_everything(RESULTS["one node"], change)
    verdict = unwrap(render_table_text(result, View(width=80)).partition("\n\n")[0])
    assert verdict.startswith("Against contiguous placement, co-activation ")
    for word in words:
        assert verdict.count(word) == 2


def test_layers_that_are_left_out_are_counted() -> None:
    text = render_table_text(RESULTS["one node"], View())
    assert "\n4 more layers: --format csv lists all, --format json every slot.\n" in text
    assert "\n15 " in text
    assert "\n16 " not in text


def test_nodes_have_rows_if_there_are_several() -> None:
    assert "nodes" not in render_table_text(RESULTS["one node"], View()).split("\n\n")[2]
    table = render_table_text(RESULTS["nodes and replicas"], View()).split("\n\n")[2]
    assert "\nnodes per token " in table
    assert "\nbetween nodes " in table


def test_the_prompts_behind_the_scores_are_said_once_below_the_verdict() -> None:
    text = render_table_text(RESULTS["one node"], View())
    assert text.split("\n\n")[1].startswith("Scores are of placements fitted on ")
    assert unwrap(text).lower().count("fitted on") == 2  # The second is what is exported.


def test_each_random_row_names_what_it_belongs_to() -> None:
    table = render_table_text(RESULTS["one node"], View()).split("\n\n")[2].splitlines()[2:]
    names = [line.split("  ")[0] for line in table]
    assert names[1::2] == [f"{name}, random" for name in names[::2]]


def test_unknown_numbers_are_dashes_with_a_reason() -> None:
    text = render_table_text(RESULTS["unknown"], View())
    assert text.split("\n\n")[2].count("–") == 4 * 3
    assert "Batch imbalance is unknown" in text
    assert "bytes are unknown" in text


def test_json_and_csv_hold_the_numbers() -> None:
    result = RESULTS["nodes and replicas"]
    report = json.loads(render_json(result))
    rows = list(csv.DictReader(io.StringIO(render_csv(result))))
    assert len(rows) == 60
    mean = sum(float(row["fan_out"]) for row in rows if row["method"] == "eplb") / 20
    assert report["methods"]["eplb"]["fan_out"] == pytest.approx(mean)
    assert report["cluster"]["num_gpus"] == 8
    unknown = list(csv.DictReader(io.StringIO(render_csv(RESULTS["unknown"]))))
    assert {row["batch_imbalance"] for row in unknown} == {""}


def test_advice_on_vllm() -> None:
    words = render_vllm_advice(RESULTS["one node"])
    assert words.startswith("No release of vLLM reads a placement from a file. Its own EPLB")
    assert "(batch max/mean by redundant experts: 0: " in words
    assert "give a longer trace" in render_vllm_advice(RESULTS["unknown"])
