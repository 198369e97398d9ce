"""Specialization as tables that fit a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

import moetool
from moetool.analysis.specialization.result import Specialization
from moetool.analysis.specialization.verdict import find_strongest_lifts
from moetool.report.questions.specialize import (
    RENDERERS,
    render_csv,
    render_json,
    render_table_text,
)
from moetool.report.renderer import ReportFormat, View
from moetool.trace.facts import TraceFacts
from tests.report.examples import TOP_K, make_counts, make_result

TRACE = "runs/größe.parquet"
VIEW = View(width=80)

FACTS = TraceFacts(
    trace=TRACE,
    model="demo",
    revision=None,
    model_type="mixtral",
    complete=True,
    exact=True,
    num_prompts=6,
    num_tokens=1_200,
    num_assignments=4_800,
)

SMALL = replace(make_result(make_counts(["code", "prose"])), trace=FACTS)
# As wide as results get: long names, many domains, hundreds of layers and experts, two notes.
LARGE = make_result(
    make_counts(
        ["a-domain-with-a-name-of-more-than-sixty-characters-which-nobody-would-type"]
        + [f"natural language {number}" for number in range(12)],
        num_experts=128,
        places=[("decoder", 99), ("decoder.attention", 110), ("encoder", 100)],
        notes=[
            "128 experts is the largest id seen plus one; --num-experts says otherwise",
            "top-8 is the largest number of rows of one decision; --top-k says otherwise",
        ],
    )
)


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def result(request: pytest.FixtureRequest) -> Specialization:
    value: Specialization = request.param
    return value


def unwrap(text: str) -> str:
    """Return the text as one line, because a sentence may run over several."""
    return " ".join(text.split())


# The table


def test_the_table_fits_eighty_columns(result: Specialization) -> None:
    text = render_table_text(result, VIEW)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.endswith("\n")


def test_no_line_of_the_table_ends_in_spaces(result: Specialization) -> None:
    lines = render_table_text(result, VIEW).splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_the_table_has_a_line_for_every_layer_with_its_figures() -> None:
    text = render_table_text(SMALL, VIEW)
    for layer in SMALL.layers:
        (line,) = (
            line for line in text.splitlines() if re.match(rf"{layer.layer}  .*\d\.\d{{4}}", line)
        )
        assert f"{layer.mutual_information_nats:.4f}" in line
        assert f"{layer.null_nats:.4f}" in line
        assert f"{layer.excess_nats:.4f}" in line
        assert f"{layer.normalized:.1%}" in line


def test_a_layer_of_another_stack_is_named_with_it() -> None:
    text = render_table_text(LARGE, VIEW)
    assert "\ndecoder.attention 110 " in text
    assert "\nencoder 100 " in text


def test_the_table_has_a_line_for_every_domain_with_its_surest_expert() -> None:
    result = make_result(make_counts(["code", "prose"], prompts_per_domain=12))
    text = render_table_text(result, VIEW)
    for size in result.domains:
        cells = [cell for cell in result.experts if cell.domain == size.domain]
        most = max(cells, key=lambda cell: cell.lift_low or 0)
        (line,) = (line for line in text.splitlines() if line.startswith(size.domain))
        words = line.split()
        assert words[1] == f"{size.prompts:,}"
        interval = f"{most.lift_low:.1f}–{most.lift_high:.1f}"
        figures = [f"{most.share:.0%}", "–", f"{most.lift:.1f}", interval]
        assert words[2:7] == [f"L{most.layer}.E{most.expert}", *figures]
        assert most.q_value is not None
        assert words[7:] == [f"{most.q_value:.3f}"]


def test_the_short_name_of_an_expert_is_explained() -> None:
    result = make_result(make_counts(["code", "prose"], prompts_per_domain=12))
    text = render_table_text(result, VIEW)
    (place,) = re.findall(r"^code .* (L\d+\.E\d+) ", text, re.M)
    layer, expert = re.findall(r"\d+", place)
    assert f"{place}: expert {expert} of layer {layer}." in unwrap(text)
    assert re.search(
        r"encoder L100\.E\d+: expert \d+ of encoder layer 100\.",
        unwrap(
            render_table_text(
                make_result(
                    make_counts(["code", "prose"], prompts_per_domain=12, places=[("encoder", 100)])
                ),
                VIEW,
            )
        ),
    )


def test_what_to_know_stands_before_how_to_read() -> None:
    text = unwrap(render_table_text(LARGE, VIEW))
    assert text.index("largest id seen plus one") < text.index("MI: mutual information")


def test_figures_notes_and_legend_differ_on_a_terminal() -> None:
    counts = make_counts(["code", "prose"], prompts_per_domain=12, notes=["top-2 is a guess"])
    result = make_result(counts)
    text = render_table_text(result, replace(VIEW, has_color=True))
    strong, warning, muted = "1", "33", "2"
    assert f"\x1b[{warning}mtop-2 is a guess\x1b" in text
    assert f"\x1b[{muted}mMI: mutual information" in text
    for layer in result.layers:
        assert f"\x1b[{strong}m{layer.excess_nats:.4f}\x1b" in text
    for domain in ("code", "prose"):
        lift = result.most_lifted[domain][0].lift
        assert f"\x1b[{strong}m{lift:.1f}\x1b" in text
    plain = render_table_text(result, VIEW)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]
    start = next(n for n, line in enumerate(lines) if line.startswith("lift of each expert in the"))
    end = lines.index("", start) + 1
    assert [line[:3] for line in lines[start + 1 : start + 3]] == ["L0 ", "L1 "]
    assert lines[:start] + lines[end:] == plain.splitlines()


def test_the_map_shows_the_strongest_sure_lift_of_each_expert() -> None:
    result = make_result(make_counts(["code", "law", "prose"], prompts_per_domain=12))
    layers = find_strongest_lifts(result.layers, result.experts)
    assert [layer.layer for layer in layers] == [0, 1]
    for layer in layers:
        for expert, strongest in enumerate(layer.lifts):
            sure = [
                cell.lift or 0
                for cell in result.experts
                if (cell.layer, cell.expert) == (layer.layer, expert)
                and (cell.lift or 0) > 1
                and (cell.q_value or 0) <= 0.05
            ]
            assert strongest == max(sure, default=None)
    nothing = replace(result.verdict, num_domain_experts=0)
    text = render_table_text(replace(result, verdict=nothing), replace(VIEW, has_color=True))
    assert "lift of each expert in" not in text


def test_the_lift_shown_is_the_share_over_the_share_of_all_tokens() -> None:
    """Recomputed from the counts, as the line below the table defines it."""
    counts = make_counts(["code", "prose"])
    for cell in make_result(counts).experts:
        layer = next(layer for layer in counts.layers if layer.layer == cell.layer)
        overall = layer.assignments[:, cell.expert].sum() / layer.decisions.sum()
        assert cell.share is not None
        assert cell.lift == pytest.approx(cell.share / overall)


def test_a_domain_without_a_sure_preference_lists_no_expert() -> None:
    counts = make_counts(["code", "prose"])
    even = tuple(
        replace(layer, assignments=np.full_like(layer.assignments, 5)) for layer in counts.layers
    )
    text = render_table_text(make_result(replace(counts, layers=even)), VIEW)
    assert text.count("none for certain") == 2
    assert "L0.E" not in text


def test_what_is_unknown_is_shown_as_a_dash_and_written_as_null() -> None:
    counts = make_counts(["code", "prose"])
    first, second = counts.layers
    idle = replace(second, assignments=np.zeros_like(second.assignments))
    result = make_result(replace(counts, layers=(first, idle)))
    text = render_table_text(result, VIEW)
    lines = [line for line in text.splitlines() if line.startswith("1  ")]
    assert [line.split() for line in lines] == [["1", "–", "–", "–", "–", "–"]]
    assert "nan" not in text
    value = json.loads(render_json(result, VIEW), parse_constant=pytest.fail)
    assert value["layers"][1] == {
        **dict.fromkeys(value["layers"][1]),
        "stack": "decoder",
        "layer": 1,
        "num_experts": 8,
        "top_k": TOP_K,
        "num_tokens": int(second.decisions.sum()),
    }
    assert any("neither MI nor p" in note for note in value["notes"])
    rows = list(csv.DictReader(io.StringIO(render_csv(result, VIEW))))
    assert {row["lift"] for row in rows if row["layer"] == "1"} == {""}


def test_a_number_that_is_not_finite_is_null_because_json_has_no_word_for_it() -> None:
    layer = replace(SMALL.layers[0], p_value=float("nan"))
    text = render_json(replace(SMALL, layers=(layer,)), VIEW)
    (written,) = json.loads(text, parse_constant=pytest.fail)["layers"]
    assert written["p_value"] is None
    assert written["null_nats"] == layer.null_nats


@pytest.mark.parametrize("word", ["\x1b[31m", "two\nlines", "\u202egpj", "\x9b2J", "\u2028"])
def test_foreign_words_cannot_steer_a_terminal(word: str) -> None:
    counts = make_counts([word, "prose"], places=[(word, 0)], notes=[f"seen {word}"])
    facts = replace(FACTS, trace=f"{word}.parquet")
    result = replace(make_result(counts), trace=facts, by=word)
    plain = set("\n")
    for render in (render_table_text, render_json):
        text = render(result, View())
        assert {character for character in text if not character.isprintable()} <= plain
    value = json.loads(render_json(result))
    assert value["trace"]["trace"] == f"{word}.parquet"
    assert word in [size["domain"] for size in value["domains"]]


def test_a_trace_whose_name_is_not_text_is_named_in_json() -> None:
    name = os.fsdecode(b"caf\xe9.parquet")
    text = render_json(replace(SMALL, trace=replace(FACTS, trace=name)))
    assert json.loads(text.encode())["trace"]["trace"] == name


def test_the_table_says_what_even_routing_would_give() -> None:
    assert f"even routing gives {TOP_K / 8:.1%}" in unwrap(render_table_text(SMALL, VIEW))


def test_few_prompts_are_warned_of_and_enough_are_not() -> None:
    few = unwrap(render_table_text(SMALL, VIEW))
    assert "Fewer than 20 prompts in code, prose" in few
    enough = make_result(make_counts(["code", "prose"], prompts_per_domain=20))
    assert "ewer than" not in render_table_text(enough, VIEW)


def test_what_had_to_be_inferred_is_said() -> None:
    for render in (render_table_text, render_json):
        text = unwrap(render(LARGE, VIEW))
        for note in LARGE.notes:
            assert note in text


@pytest.mark.parametrize("name", [":fire:", "[bold]x[/bold]", "日本語", "<b>&amp;"])
def test_a_domain_is_printed_as_it_is_named(name: str) -> None:
    text = render_table_text(make_result(make_counts([name, "prose"])), VIEW)
    assert [line for line in text.splitlines() if line.startswith(f"{name} ")]


# JSON


def test_json_carries_schema_version_and_every_figure(result: Specialization) -> None:
    value = json.loads(render_json(result, VIEW))
    assert value["schema"] == "moetool.specialize/1"
    assert value["moetool"] == moetool.__version__
    assert value["trace"] == (None if result.trace is None else asdict(FACTS))
    assert value["num_permutations"] == result.num_permutations
    assert value["seed"] == result.seed
    assert value["domains"] == [asdict(size) for size in result.domains]
    assert value["layers"] == [asdict(layer) for layer in result.layers]
    assert value["experts"] == [asdict(cell) for cell in result.experts]


def test_json_warns_in_its_notes() -> None:
    warning, *inferred = json.loads(render_json(LARGE, VIEW))["notes"]
    assert "Fewer than 20 prompts" in warning
    assert [warning, *inferred] == list(LARGE.notes)
    assert len(inferred) >= 2


def test_json_says_nothing_where_there_is_nothing_to_say() -> None:
    enough = make_result(make_counts(["code", "prose"], prompts_per_domain=20))
    assert json.loads(render_json(enough, VIEW))["notes"] == []


# CSV


def test_csv_has_the_experts_of_the_json(result: Specialization) -> None:
    experts = json.loads(render_json(result, VIEW))["experts"]
    rows = list(csv.DictReader(io.StringIO(render_csv(result, VIEW), newline="")))
    assert list(rows[0]) == list(experts[0])
    assert rows == [
        {name: "" if value is None else str(value) for name, value in cell.items()}
        for cell in experts
    ]


@pytest.mark.parametrize("domain", ['a "quoted" one', "a, b", "two\nlines", " spaces "])
def test_csv_quotes_what_a_domain_may_hold(domain: str) -> None:
    cells = tuple(replace(cell, domain=domain) for cell in SMALL.experts)
    text = render_csv(replace(SMALL, experts=cells), VIEW)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(cells)
    assert {row["domain"] for row in rows} == {domain}


def test_there_is_a_renderer_for_every_format() -> None:
    texts = {name: render(SMALL, VIEW) for name, render in RENDERERS.items()}
    assert set(texts) == set(ReportFormat)
    assert all(text.endswith("\n") for text in texts.values())
