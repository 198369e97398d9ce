"""Excerpts of a trace, against its rows read one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.trace.decisions import LayerDecisions
from moetool.trace.excerpt import (
    StackExcerpt,
    choose_excerpt_tokens,
    choose_num_excerpts,
    excerpt_rows,
)
from moetool.trace.rows import assignment_rows, merge_by_prompt
from tests.trace.examples import make_rows, make_tokens, traces

Row = dict[str, Any]


def list_rows(prompt_id: str, stacks: tuple[StackExcerpt, ...]) -> list[Row]:
    """Return the rows of a trace that excerpts show."""
    return [
        {
            "prompt_id": prompt_id,
            "phase": "decode" if token.is_new else "prefill",
            "position": token.position,
            "token": token.piece,
            "stack": stack.stack,
            "layer": layer,
            "rank": rank,
            "expert": expert,
        }
        for stack in stacks
        for token in stack.tokens
        for layer, chosen in zip(stack.layers, token.experts, strict=True)
        for rank, expert in enumerate(chosen)
    ]


def sort_rows(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["stack"], row["layer"], row["position"], row["rank"]))


def as_shown(rows: pa.Table) -> list[Row]:
    names = ["prompt_id", "phase", "position", "token", "stack", "layer", "rank", "expert"]
    shown: list[Row] = rows.select(names).to_pylist()
    return shown


def make_decisions(
    num_tokens: int, *, stack: str = "decoder", layer: int = 0, experts: Any = None
) -> LayerDecisions:
    chosen = np.zeros((num_tokens, 1)) if experts is None else np.array(experts)
    weights = np.tile(np.linspace(1, 0.5, chosen.shape[1]), (num_tokens, 1))
    return LayerDecisions(
        stack=stack,
        layer=layer,
        experts=chosen.astype(np.int16),
        weights=weights.astype(np.float32),
    )


@settings(deadline=None)
@given(traces(), st.data())
def test_an_excerpt_that_holds_all_tokens_holds_every_row_of_its_prompt(
    rows: pa.Table, data: st.DataObject
) -> None:
    everything = as_shown(rows)
    prompt_id = data.draw(st.sampled_from(sorted({row["prompt_id"] for row in everything})))
    stacks = excerpt_rows(rows, prompt_id, most_tokens=4)
    own = [row for row in everything if row["prompt_id"] == prompt_id]
    assert sort_rows(list_rows(prompt_id, stacks)) == sort_rows(own)
    for stack in stacks:
        positions = [token.position for token in stack.tokens]
        assert positions == sorted(set(positions))


@pytest.mark.parametrize("most_tokens", [1, 2, 5, 6, 50])
def test_of_many_tokens_the_first_and_the_last_of_each_kind_are_kept(most_tokens: int) -> None:
    phase = [0] * 20 + [1] * 9
    rows = make_rows((3, 29, 2), phase=[0, 0, 0, *phase, 0, 0])
    (stack,) = excerpt_rows(rows, "p1", most_tokens=most_tokens)
    given = [token.position for token in stack.tokens if not token.is_new]
    new = [token.position for token in stack.tokens if token.is_new]
    for kept, everything in ((given, list(range(20))), (new, list(range(20, 29)))):
        assert len(kept) == min(most_tokens, len(everything))
        num_last = len(kept) // 2 if len(kept) < len(everything) else 0
        num_first = len(kept) - num_last
        assert kept == everything[:num_first] + everything[len(everything) - num_last :]


def test_no_expert_and_identity_experts_keep_their_ids() -> None:
    tokens = make_tokens((2,))
    experts = [[5, 64], [-1, -1]]
    rows = assignment_rows(tokens, [make_decisions(2, experts=experts)])
    (stack,) = excerpt_rows(rows, "p0", most_tokens=9)
    assert [token.experts for token in stack.tokens] == [((5, 64),), ((-1, -1),)]


def test_layers_may_choose_different_numbers_of_experts() -> None:
    tokens = make_tokens((1,))
    layers = [
        make_decisions(1, layer=3, experts=[[4]]),
        make_decisions(1, layer=1, experts=[[7, 2, 5]]),
    ]
    (stack,) = excerpt_rows(assignment_rows(tokens, layers), "p0", most_tokens=9)
    assert stack.layers == (3, 1)
    assert stack.tokens[0].experts == ((4,), (7, 2, 5))


def test_stacks_come_in_the_order_of_the_trace_each_with_its_own_tokens() -> None:
    encoder = assignment_rows(
        make_tokens((4, 5)), [make_decisions(9, stack="encoder", layer=number) for number in (1, 3)]
    )
    decoder = assignment_rows(
        make_tokens((2, 3), phase=[0, 1, 0, 1, 1], pieces=["<s>", "a", "b", "c", "d"]),
        [
            make_decisions(5, stack="decoder.attention", layer=1),
            make_decisions(5, stack="decoder", layer=1),
        ],
    )
    stacks = excerpt_rows(merge_by_prompt([encoder, decoder]), "p1", most_tokens=9)
    assert [stack.stack for stack in stacks] == ["encoder", "decoder.attention", "decoder"]
    assert [stack.layers for stack in stacks] == [(1, 3), (1,), (1,)]
    assert [len(stack.tokens) for stack in stacks] == [5, 3, 3]
    assert [token.is_new for token in stacks[2].tokens] == [False, True, True]
    assert [token.piece for token in stacks[2].tokens] == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("asked", "num_prompts", "shown"),
    [
        (None, 1, 1),
        (None, 3, 3),
        (None, 4, 0),
        (None, 210, 0),
        (0, 1, 0),
        (2, 210, 2),
        (5, 4, 4),
    ],
)
def test_a_few_prompts_are_shown_unasked(asked: int | None, num_prompts: int, shown: int) -> None:
    assert choose_num_excerpts(asked, num_prompts=num_prompts) == shown


def test_several_excerpts_are_shorter_each_but_never_empty() -> None:
    lengths = [choose_excerpt_tokens(number) for number in (1, 2, 3, 100)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] > 1
