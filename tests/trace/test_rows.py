"""The rows of a trace, against a plain loop over prompts, layers, tokens and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.trace.decisions import PHASES, LayerDecisions, TracedTokens
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from tests.trace.examples import layer_decisions, make_layers, make_tokens, traced_tokens

Row = dict[str, Any]


@st.composite
def recorded(draw: st.DrawFn) -> tuple[TracedTokens, list[LayerDecisions]]:
    tokens = draw(traced_tokens())
    return tokens, draw(layer_decisions(num_tokens=len(tokens.token_id)))


def loop_over_assignments(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> list[Row]:
    piece_of = dict(zip(sorted(set(tokens.token_id.tolist())), tokens.pieces, strict=True))
    rows = []
    for prompt in range(len(tokens.prompt_ids)):
        for layer in layers:
            for token in np.flatnonzero(tokens.prompt == prompt).tolist():
                experts, weights = layer.experts[token].tolist(), layer.weights[token].tolist()
                # Python's sort is stable: equal weights keep the router's order.
                ranked = sorted(zip(experts, weights, strict=True), key=lambda pair: -pair[1])
                for rank, (expert, weight) in enumerate(ranked):
                    row = {
                        "prompt_id": tokens.prompt_ids[prompt],
                        "domain": tokens.domains[prompt],
                        "phase": PHASES[tokens.phase[token]],
                        "position": int(tokens.position[token]),
                        "token_id": int(tokens.token_id[token]),
                        "token": piece_of[int(tokens.token_id[token])],
                        "stack": layer.stack,
                        "layer": layer.layer,
                        "rank": rank,
                        "expert": expert,
                        "weight": weight,
                    }
                    rows.append(row)
    return rows


def loop_over_decisions(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> list[Row]:
    rows = []
    for prompt in range(len(tokens.prompt_ids)):
        for layer in layers:
            assert layer.probabilities is not None
            for token in np.flatnonzero(tokens.prompt == prompt).tolist():
                row = {
                    "prompt_id": tokens.prompt_ids[prompt],
                    "stack": layer.stack,
                    "layer": layer.layer,
                    "position": int(tokens.position[token]),
                    "probabilities": layer.probabilities[token].tolist(),
                }
                rows.append(row)
    return rows


@settings(deadline=None)
@given(recorded())
def test_assignments_are_those_of_the_loop_row_by_row(
    example: tuple[TracedTokens, list[LayerDecisions]],
) -> None:
    table = assignment_rows(*example)
    assert table.schema == TRACE_SCHEMA
    assert table.to_pylist() == loop_over_assignments(*example)


@settings(deadline=None)
@given(recorded())
def test_probabilities_are_those_of_the_loop_row_by_row(
    example: tuple[TracedTokens, list[LayerDecisions]],
) -> None:
    table = probability_rows(*example)
    assert table.schema == PROBABILITIES_SCHEMA
    assert table.to_pylist() == loop_over_decisions(*example)


def test_the_largest_weight_has_rank_zero_and_ties_keep_the_routers_order() -> None:
    layer = LayerDecisions(
        stack="decoder",
        layer=0,
        experts=np.array([[5, 2, 4, 1]], dtype=np.int16),
        weights=np.array([[0.2, 0.4, 0.2, 0.2]], dtype=np.float32),
    )
    rows = assignment_rows(make_tokens([1]), [layer])
    assert rows.column("rank").to_pylist() == [0, 1, 2, 3]
    assert rows.column("expert").to_pylist() == [2, 5, 4, 1]


def test_layers_may_differ_in_top_k() -> None:
    rows = assignment_rows(make_tokens([2, 1]), make_layers(3, top_k=(1, 3)))
    assert rows.column("layer").to_pylist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    assert rows.column("rank").to_pylist() == [0, 0, 0, 1, 2, 0, 1, 2, 0, 0, 1, 2]


def test_layers_keep_the_order_in_which_they_are_given() -> None:
    experts, weights = np.array([[0]], dtype=np.int16), np.array([[1.0]], dtype=np.float32)
    places = [("encoder", 1), ("encoder", 3), ("decoder", 1)]
    layers = [
        LayerDecisions(stack=stack, layer=layer, experts=experts, weights=weights)
        for stack, layer in places
    ]
    rows = assignment_rows(make_tokens([1]), layers).to_pylist()
    assert [(row["stack"], row["layer"]) for row in rows] == places


def test_probabilities_lie_in_the_order_of_the_assignments() -> None:
    tokens, layers = make_tokens([2, 3]), make_layers(5, top_k=(2, 1))
    key = ["prompt_id", "stack", "layer", "position"]
    assignments = assignment_rows(tokens, layers)
    first_choices = [row for row in assignments.to_pylist() if row["rank"] == 0]
    decisions = probability_rows(tokens, layers).to_pylist()
    assert [[row[name] for name in key] for row in decisions] == [
        [row[name] for name in key] for row in first_choices
    ]
