"""Fewer expert ids than top-k, as where all but one were dropped, are a legal trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pandas as pd
import pytest

import moetool
from moetool.errors import InputError, UsageError
from moetool.trace.reading.frames import open_frame
from moetool.trace.windows.reader import DecisionReader

FRAME = pd.DataFrame(
    [
        (prompt, domain, position, 1, rank, 0 if rank == 0 else -1, 1.0 - rank, position)
        for prompt, domain in (("a", "x"), ("b", "y"), ("c", "x"))
        for position in range(3)
        for rank in range(2)
    ],
    columns=["prompt_id", "domain", "position", "layer", "rank", "expert", "weight", "token_id"],
)
QUESTIONS: list[Callable[[pd.DataFrame], Any]] = [
    moetool.measure_balance,
    moetool.measure_specialization,
    lambda frame: moetool.measure_specialization(frame, by="token"),
    moetool.measure_coactivation,
    moetool.measure_tokens,
    lambda frame: moetool.compare_traces(frame, frame),
    lambda frame: moetool.place_experts(frame, num_gpus=1),
    moetool.select_experts,
    moetool.simulate_caches,
    moetool.validate_trace,
]


def test_there_are_at_least_as_many_experts_as_top_k() -> None:
    reader = DecisionReader(open_frame(FRAME))
    assert [(layer.num_experts, layer.top_k) for layer in reader.layers] == [(2, 2)]
    with pytest.raises(InputError, match="can't choose 2 of 1 experts"):
        DecisionReader(open_frame(FRAME), num_experts=1)


@pytest.mark.parametrize("experts", ["one", "none"])
@pytest.mark.parametrize("ask", QUESTIONS)
def test_every_question_is_answered_or_refused(
    ask: Callable[[pd.DataFrame], Any], experts: str
) -> None:
    frame = FRAME if experts == "one" else FRAME.assign(expert=-1, weight=0.0)
    answer = None
    with suppress(InputError, UsageError):
        answer = ask(frame)
    assert answer is None or answer.to_dict()
