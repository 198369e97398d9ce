"""The first steps of a trace, in which a simulated router follows it."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from moetool.analysis.caching.simulation import steps as steps_module
from moetool.analysis.caching.simulation.steps import DECODE, PREFILL, FirstSteps, make_steps
from moetool.trace.windows import reader as window_reader
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, list_decisions, make_random_trace, open_rows
from tests.analysis.short_decisions import shorten_decisions

ROUTER = Router(num_experts=12, top_k=3, num_layers=2)
LENGTHS = (5, 9, 4, 7)


def read_first_steps(monkeypatch: pytest.MonkeyPatch) -> tuple[FirstSteps, list[list[int]]]:
    """Return the first steps of a trace read in small windows, and each token's sizes by hand.

    Some tokens have no decision in the second layer, and some decisions are short.
    """
    monkeypatch.setattr(window_reader, "_ROWS_PER_WINDOW", 40)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 30)
    table = make_random_trace(LENGTHS, router=ROUTER, num_prompt_tokens=3)
    table = shorten_decisions(table, share=0.5)
    missing = pc.and_(pc.equal(table["layer"], 1), pc.equal(table["position"], 2))
    table = table.filter(pc.invert(missing))
    ran: dict[tuple[str, int], list[int]] = {}
    for decision in list_decisions(table):
        sizes = ran.setdefault((decision.prompt_id, decision.position), [0, 0])
        sizes[decision.layer] = sum(expert >= 0 for expert in decision.experts)
    reader = DecisionReader(open_rows(table, router=ROUTER), columns=("phase",))
    first = FirstSteps(num_layers=2)
    for window in reader:
        stack = np.zeros(len(window.prompt), dtype=np.int64)
        steps = make_steps(window, stack, tokens_per_batch=2, decodes_all=False)
        layers = [window.layers.get((layer.stack, layer.layer)) for layer in reader.layers]
        first.add(steps, layers)
    return first, [
        ran[f"p{prompt}", position]
        for prompt, length in enumerate(LENGTHS)
        for position in range(length)
    ]


def test_each_token_has_the_experts_that_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    first, ran = read_first_steps(monkeypatch)
    assert first.sizes.T.tolist() == ran
    assert {size for sizes in ran for size in sizes} == {0, 1, 2, 3}
    # Prompts of three tokens take steps of two and of one; each generated token takes one.
    lengths = [size for length in LENGTHS for size in (2, 1, *[1] * (length - 3))]
    assert np.bincount(first.of_token).tolist() == lengths
    phases = [[PREFILL] * 2 + [DECODE] * (length - 3) for length in LENGTHS]
    assert first.phases.tolist() == [phase for each in phases for phase in each]


@pytest.mark.parametrize(("most_steps", "most_tokens"), [(7, 1000), (1000, 9), (3, 2), (1, 1)])
def test_no_more_steps_and_tokens_are_taken_than_needed(
    most_steps: int, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = read_first_steps(monkeypatch)
    monkeypatch.setattr(steps_module, "_MOST_STEPS", most_steps)
    monkeypatch.setattr(steps_module, "_MOST_TOKENS", most_tokens)
    first, ran = read_first_steps(monkeypatch)
    number = min(int((whole.of_token < most_steps).sum()), most_tokens)
    assert first.of_token.tolist() == whole.of_token[:number].tolist()
    assert first.sizes.T.tolist() == ran[:number]
    assert first.phases.tolist() == whole.phases[: len(set(first.of_token.tolist()))].tolist()
