"""Pages and files of co-activation and tokens: their words, and what they must not contain."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from moetool.analysis.coactivation.measure import reach_verdict as reach_pair_verdict
from moetool.analysis.coactivation.result import Transition
from moetool.analysis.tokens.result import reach_verdict
from moetool.plain import Tabular
from moetool.report.questions import coactivation
from moetool.report.questions.tokens import expert, prompt, routing, token
from moetool.report.renderer import ReportFormat, View
from tests.cli.bad_input.refusals import find_steering
from tests.report.questions.answers import (
    make_coactivation,
    make_expert_tokens,
    make_prompt_routing,
    make_token_experts,
    make_token_routing,
)
from tests.test_results import list_differences, read_rows, spell

# Each result with its renderers. The rendering of one kind never meets a result of another.
ANSWERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "coactivation": (make_coactivation, coactivation.RENDERERS),
    "routing": (make_token_routing, routing.RENDERERS),
    "expert": (make_expert_tokens, expert.RENDERERS),
    "token": (make_token_experts, token.RENDERERS),
    "prompt": (make_prompt_routing, prompt.RENDERERS),
}


def render(name: str, form: ReportFormat) -> tuple[Tabular, str]:
    make, renderers = ANSWERS[name]
    result: Tabular = make()
    text: str = renderers[form](result, View())
    return result, text


@pytest.mark.parametrize("name", ANSWERS)
def test_json_has_the_names_and_values_of_the_result(name: str) -> None:
    result, text = render(name, ReportFormat.JSON)
    value = json.loads(text)
    assert value.pop("schema") in ("moetool.coactivation/1", "moetool.tokens/1")
    del value["moetool"]
    assert value == result.to_dict()
    if name == "expert":
        # Its layer is one of a list, as in the other answers.
        (value,) = value["layers"]
    for item in value.get("tokens", []):
        item.pop("usual_experts", None)
    assert list_differences(value, result) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_csv_has_the_rows_of_the_result_and_the_frame(name: str) -> None:
    result, text = render(name, ReportFormat.CSV)
    rows = result.to_rows()
    assert rows
    assert [{key: spell(value) for key, value in row.items()} for row in rows] == read_rows(text)
    frame = result.to_frame()
    written = list(csv.reader(io.StringIO(frame.to_csv(index=False))))
    assert written == list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("form", [ReportFormat.TABLE, ReportFormat.JSON])
@pytest.mark.parametrize("name", ANSWERS)
def test_no_piece_steers_a_terminal(name: str, form: ReportFormat) -> None:
    assert find_steering(render(name, form)[1]) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_a_result_is_frozen_and_its_repr_is_a_line(name: str) -> None:
    result, _ = render(name, ReportFormat.JSON)
    with pytest.raises(FrozenInstanceError):
        result.notes = ()  # type: ignore[attr-defined]
    assert repr(result).isprintable()
    assert len(repr(result)) <= 160


def show(page: str) -> str:
    return " ".join(page.split())


def test_the_verdict_on_pairs_says_no_more_than_the_numbers() -> None:
    result = make_coactivation()
    page = show(coactivation.render_table_text(result))
    assert "None of 264 pairs of experts differs for certain" in page
    assert "A layer's experts don't help to predict the next layer's" in page
    layers = tuple(
        replace(layer, num_above=3, num_below=1, next_layer=make_sure(layer.next_layer))
        for layer in result.layers
    )
    verdict = reach_pair_verdict(layers)
    assert verdict.num_layers_beyond_popularity == verdict.num_predicted_layers == 3
    page = show(
        coactivation.render_table_text(
            replace(result, layers=layers, verdict=verdict, hit_rate=0.9)
        )
    )
    assert "12 are chosen together more often than the experts' loads explain, and 4" in page
    assert "A layer's experts predict the next layer's: they find 90% of them" in page


def make_sure(following: Transition | None) -> Transition | None:
    """Return pairs with the next layer whose prediction is better than popularity for certain."""
    if following is None or following.prediction is None:
        return following
    return replace(following, prediction=replace(following.prediction, gain_low=0.2))


def test_the_verdict_on_tokens_says_no_more_than_the_numbers() -> None:
    result = make_token_routing()
    page = show(routing.render_table_text(result))
    assert "A token's id alone doesn't help to predict first choices" in page
    assert "The first choice never changes for 0.0% of the token ids" in page
    layers = tuple(
        replace(
            layer,
            fixed_share=0.5,
            prediction=layer.prediction and replace(layer.prediction, hit_rate=0.8, gain_low=0.1),
        )
        for layer in result.layers
    )
    page = show(
        routing.render_table_text(replace(result, layers=layers, verdict=reach_verdict(layers)))
    )
    assert "A token's id alone predicts first choices" in page
    assert "never changes for 50.0% of the token ids" in page


def test_more_layers_than_fit_are_counted() -> None:
    result = make_coactivation()
    layers = tuple(replace(result.layers[0], layer=number) for number in range(45))
    page = show(coactivation.render_table_text(replace(result, layers=layers)))
    assert "The first 30 layers of 45 are shown; --layers chooses others" in page


def test_a_context_shows_the_token_between_its_neighbours() -> None:
    result = make_expert_tokens()
    (line,) = (
        line
        for line in expert.render_table_text(result).splitlines()
        if result.contexts[0].prompt_id in line.split()[-2:]
        and line.split()[-1] == str(result.contexts[0].position)
    )
    assert "[" in line
    assert f"{result.contexts[0].weight:.3f}" in line
