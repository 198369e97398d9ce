"""The words above a specialization say what the numbers support, and no more."""

from __future__ import annotations

import re
from dataclasses import replace
from inspect import signature
from typing import Any

import pytest

from moetool.analysis.specialization.result import Specialization
from moetool.analysis.specialization.verdict import choose_answer
from moetool.report.questions.specialization.tables import choose_layers
from moetool.report.questions.specialization.verdict import word_verdict
from moetool.report.questions.specialize import render_table_text
from moetool.report.questions.specialize_tokens import render_table_text as render_by_token
from moetool.report.renderer import View
from tests.report.examples import (
    make_counts,
    make_result,
    make_token_result,
    make_whole_result,
)

KNOWN: dict[str, Any] = {
    "num_tested_layers": 12,
    "num_significant_layers": 11,
    "num_shared_layers": 12,
    "num_layers_beyond_vocabulary": 9,
    "least_conditional_normalized": 0.104,
    "most_conditional_normalized": 0.269,
}


def with_verdict(**figures: Any) -> Specialization:
    result = make_whole_result()
    known = {**KNOWN, **figures}
    deciding = signature(choose_answer).parameters
    answer = choose_answer(**{name: value for name, value in known.items() if name in deciding})
    return replace(result, verdict=replace(result.verdict, **known, answer=answer))


def read(result: Specialization) -> str:
    return " ".join(str(line) for line in word_verdict(result))


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {},
            "Experts specialize by domain in 9 of 12 layers beyond vocabulary: once the token is "
            "known, experts tell 10 to 27% of what is left to know about its domain.",
        ),
        (
            {"least_conditional_normalized": 0.0161, "most_conditional_normalized": 0.0352},
            "Experts differ between domains in 11 of 12 layers, hardly more than vocabulary "
            "explains: once the token is known, experts tell 1.6 to 3.5% of what is left to know "
            "about its domain. That is as little as context gives without training: untrained "
            "copies of the demonstration model reach 1.6 to 4.8%.",
        ),
        (
            {"num_layers_beyond_vocabulary": 0, "most_conditional_normalized": None},
            "Experts differ between domains in 11 of 12 layers, no more than vocabulary explains: "
            "no layer is seen to give the same token other experts in other domains.",
        ),
        (
            {"num_shared_layers": 0, "num_layers_beyond_vocabulary": 0},
            "Experts specialize by domain in 11 of 12 layers; how much of that is vocabulary is "
            "unknown.",
        ),
        (
            {"num_significant_layers": 0},
            "Experts do not specialize by domain: in none of 12 layers do domains differ more than "
            "prompts drawn at random.",
        ),
        (
            {"num_tested_layers": 1, "num_significant_layers": 0},
            "Experts do not specialize by domain: domains don't differ more than prompts drawn at "
            "random in the one layer tested.",
        ),
        (
            {"num_tested_layers": 0, "num_significant_layers": 0},
            "No expert ran in any layer: there is nothing to compare.",
        ),
    ],
    ids=["beyond", "hardly", "vocabulary", "unknown", "nothing", "nothing in one layer", "idle"],
)
def test_the_verdict_is_what_the_numbers_support(figures: dict[str, Any], words: str) -> None:
    assert read(with_verdict(**figures)).startswith(words)


def test_the_verdict_comes_first_and_names_the_column() -> None:
    result = replace(with_verdict(), by="language")
    text = " ".join(render_table_text(result, View(width=80)).split())
    assert text.startswith("Experts specialize by language in 9 of 12 layers")
    assert "values of language" in text
    assert "domain " not in text.partition(" layer MI ")[0]


def test_domain_experts_are_counted_in_words() -> None:
    assert "by at least one of the domains than by all together" in read(with_verdict())
    one = with_verdict(num_experts=8, num_domain_experts=1, num_certain_experts=0)
    assert "1 of 8 experts is used more" in read(one)
    assert "0 at a family-wise error rate of 5%" in read(one)


@pytest.mark.parametrize(("number", "expected"), [(3, 3), (12, 12), (61, 12)])
def test_many_layers_are_shown_from_the_first_to_the_last(number: int, expected: int) -> None:
    shown = choose_layers(list(range(number)))
    assert len(shown) == len(set(shown)) == expected
    assert (shown[0], shown[-1]) == (0, number - 1)


def test_layers_that_are_left_out_are_counted() -> None:
    text = render_table_text(make_whole_result(), View(width=80))
    assert "12 of 14 layers are shown; --layers chooses others" in text
    assert "layers are shown" not in render_table_text(
        make_result(make_counts(["code", "prose"])), View(width=80)
    )


def test_a_table_of_many_domains_has_at_most_thirty_lines() -> None:
    names = [f"domain {number:02}" for number in range(41)]
    result = make_result(make_counts(names), num_permutations=19)
    text = render_table_text(result, View(width=80))
    assert len(re.findall(r"^domain \d\d +3 ", text, re.M)) == 30
    assert "30 of 41 values are shown" in text


def test_by_token_the_range_over_layers_is_that_of_the_table() -> None:
    result = make_token_result()
    known = [layer.vocabulary_specialization or 0 for layer in result.layers]
    text = " ".join(render_by_token(result, View(width=80)).split())
    low, high = f"{min(known):.0%}", f"{max(known):.0%}"
    assert text.startswith(
        f"The usual expert of a token id gets {low[:-1]} to {high} of its occurrences, depending "
        "on the layer; under a router with the same loads that ignores the token it would get "
    )
    assert result.verdict is not None
    one = replace(result, verdict=replace(result.verdict, num_layers=1))
    assert "depending on the layer" not in render_by_token(one, View(width=80))


def test_by_token_the_experts_shown_are_those_of_the_layer_where_the_token_decides_most() -> None:
    result = make_token_result()
    most = max(result.layers, key=lambda layer: layer.vocabulary_specialization or 0)
    text = render_by_token(result, View(width=80))
    for token in result.tokens:
        row = rf"^L{token.layer}\.E{token.expert} .* '{token.token}' {token.shrunken_lift:.1f}\b"
        assert bool(re.search(row, text, re.M)) == (token.layer == most.layer)
    assert f"Experts are those of layer {most.layer};" in " ".join(text.split())
