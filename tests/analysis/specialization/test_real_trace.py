"""Figures of the demonstration model's trace, against loops over its rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moetool import measure_specialization, read_trace
from moetool.analysis.specialization.result import Specialization
from tests.analysis.specialization.given_token.test_vocabulary import by_loops
from tests.analysis.specialization.simulated import Text

LAYERS = [0, 4]
PROMPTS_OF_DOMAIN = 5


@pytest.fixture(scope="module")
def frame(demo_trace: Path) -> pd.DataFrame:
    """Two layers of the first prompts of each domain."""
    rows = read_trace(demo_trace)
    names = rows["prompt_id"].astype(str)
    rows = rows[(names.str[-2:].astype(int) <= PROMPTS_OF_DOMAIN) & rows["layer"].isin(LAYERS)]
    return rows[rows["position"] < 60]


@pytest.fixture(scope="module")
def result(frame: pd.DataFrame) -> Specialization:
    return measure_specialization(frame, num_permutations=9)


def list_decisions(frame: pd.DataFrame, layer: int) -> list[dict[str, Any]]:
    """Return the decisions of a layer in the order of prompts and positions."""
    decisions: dict[tuple[str, int], dict[str, Any]] = {}
    mine = frame[frame["layer"] == layer].sort_values(["prompt_id", "position", "rank"])
    records: list[dict[str, Any]] = mine.to_dict("records")  # type: ignore[assignment]
    for row in records:
        key = (row["prompt_id"], row["position"])
        decisions.setdefault(key, {**row, "experts": []})["experts"].append(row["expert"])
    return list(decisions.values())


@pytest.mark.parametrize("layer", LAYERS)
def test_specialization_given_the_token(
    frame: pd.DataFrame, result: Specialization, layer: int
) -> None:
    decisions = list_decisions(frame, layer)
    prompts = sorted({each["prompt_id"] for each in decisions})
    domains = sorted({each["domain"] for each in decisions})
    domain_of = {each["prompt_id"]: each["domain"] for each in decisions}
    text = Text(
        token_id=np.array([each["token_id"] for each in decisions]),
        prompt=np.array([prompts.index(each["prompt_id"]) for each in decisions]),
        label=np.array([domains.index(domain_of[prompt]) for prompt in prompts]),
        experts=np.array([each["experts"] for each in decisions]),
    )
    information, entropy, same, other = by_loops(text)
    (found,) = (each for each in result.layers if each.layer == layer)
    assert found.conditional_information_nats == pytest.approx(information)
    assert found.same_domain_overlap == pytest.approx(same)
    assert found.other_domain_overlap == pytest.approx(other)
    assert found.conditional_excess_nats is not None
    assert found.conditional_normalized == pytest.approx(found.conditional_excess_nats / entropy)
    assert (found.num_experts, found.top_k, found.num_tokens) == (8, 2, len(decisions))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("domain", [None, "german"])
def test_repetition(
    frame: pd.DataFrame, result: Specialization, layer: int, domain: str | None
) -> None:
    decisions = list_decisions(frame, layer)
    pairs = [
        (one["experts"], other["experts"])
        for one, other in pairwise(decisions)
        if one["prompt_id"] == other["prompt_id"] and domain in (None, one["domain"])
    ]
    (found,) = (each for each in result.repetition if each.layer == layer and each.domain == domain)
    assert found.num_pairs == len(pairs)
    assert found.first == pytest.approx(np.mean([one[0] == other[0] for one, other in pairs]))
    assert found.any == pytest.approx(np.mean([bool({*one} & {*other}) for one, other in pairs]))


@pytest.mark.parametrize("layer", LAYERS)
def test_vocabulary_specialization(frame: pd.DataFrame, layer: int) -> None:
    by_token = measure_specialization(frame, by="token", layers=[layer], min_count=7)
    uses: dict[int, Counter[int]] = defaultdict(Counter)
    number: Counter[int] = Counter()
    pieces = {}
    for each in list_decisions(frame, layer):
        uses[each["token_id"]].update(each["experts"])
        number[each["token_id"]] += 1
        pieces[each["token_id"]] = each["token"]
    enough = [token for token in number if number[token] >= 7]
    (found,) = by_token.layers
    assert found.num_token_ids == len(enough) > 20
    assert found.vocabulary_specialization == pytest.approx(
        np.mean([max(uses[token].values()) / number[token] for token in enough])
    )
    for token in by_token.tokens:
        assert token.assignments == uses[token.token_id][token.expert]
        assert (token.occurrences, token.token) == (
            number[token.token_id],
            pieces[token.token_id],
        )


def test_divergence(frame: pd.DataFrame, result: Specialization) -> None:
    for found in result.divergences:
        mine = frame[frame["layer"] == found.layer]
        a, b = (
            np.bincount(mine[mine["domain"] == name]["expert"], minlength=8)
            for name in (found.domain, found.other)
        )
        a, b = a / a.sum(), b / b.sum()
        # As the mean distance of both from their middle, another way to write it.
        middle = (a + b) / 2
        expected = sum(
            (one[one > 0] * np.log(one[one > 0] / middle[one > 0])).sum() / 2 for one in (a, b)
        )
        assert found.divergence_nats == pytest.approx(expected)
