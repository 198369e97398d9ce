"""The rows of a trace, against a plain loop over prompts, layers, tokens and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.trace.decisions import NO_EXPERT, PHASES, LayerDecisions, TracedTokens
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from tests.trace.examples import (
    NUM_EXPERTS,
    layer_decisions,
    make_layers,
    make_tokens,
    traced_tokens,
)

Row = dict[str, Any]


@st.composite
def recorded(draw: st.DrawFn) -> tuple[TracedTokens, list[LayerDecisions]]:
    """Tokens and layers, in whatever order and types a recorder may hand them over."""
    tokens = draw(traced_tokens())
    num_tokens = len(tokens.token_id)
    if draw(st.booleans()):
        order = np.array(draw(st.permutations(range(num_tokens))))
        tokens = replace(
            tokens,
            **{
                name: getattr(tokens, name)[order]
                for name in ("prompt", "position", "phase", "token_id")
            },
        )
    layers = draw(
        layer_decisions(num_tokens=num_tokens)
        | st.builds(
            lambda top_k, count, seed: make_layers(num_tokens, top_k=(top_k,) * count, seed=seed),
            st.sampled_from([1, 2, 3, NUM_EXPERTS]),
            st.integers(1, 3),
            st.integers(0, 2**16),
        )
    )
    return tokens, [draw(changed(layer)) for layer in layers]


@st.composite
def changed(draw: st.DrawFn, layer: LayerDecisions) -> LayerDecisions:
    """A layer in another stack, with its weights in order, with places without an expert, or both."""
    experts, weights = layer.experts, layer.weights
    if draw(st.booleans()):
        weights = -np.sort(-weights, axis=1)
    if draw(st.booleans()):
        absent = sorted(draw(st.sets(st.integers(0, weights.shape[1] - 1))))
        experts, weights = experts.copy(), weights.copy()
        experts[: len(experts) // 2 + 1, absent] = NO_EXPERT
        weights[: len(experts) // 2 + 1, absent] = 0
    stack = draw(st.sampled_from(["decoder", "encoder"]))
    return replace(layer, stack=stack, experts=experts, weights=weights)


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


ODD_WEIGHTS = (0.5, 0.25, 1e-45, 0.0, -0.0, -0.5, np.inf, -np.inf, np.nan)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(ODD_WEIGHTS), min_size=9, max_size=9), min_size=1))
def test_any_weights_are_ranked_as_by_a_stable_sort_of_their_negatives(
    values: list[list[float]],
) -> None:
    weights = np.array(values, dtype=np.float32)
    experts = np.tile(np.arange(9, dtype=np.int16), (len(weights), 1))
    rows = assignment_rows(
        make_tokens([len(weights)]), [LayerDecisions("decoder", 0, experts, weights)]
    )
    order = np.argsort(-weights, axis=1, kind="stable")
    assert rows.column("expert").to_pylist() == order.ravel().tolist()
    ranked = np.take_along_axis(weights, order, axis=1)
    assert rows.column("weight").to_numpy().tobytes() == ranked.tobytes()


def test_narrow_numbers_are_widened_to_the_types_of_the_schema() -> None:
    layer = LayerDecisions(
        stack="decoder",
        layer=0,
        experts=np.array([[200, 3]], dtype=np.uint8),
        weights=np.array([[0.25, 0.75]], dtype=np.float16),
    )
    rows = assignment_rows(make_tokens([1]), [layer])
    assert rows.schema == TRACE_SCHEMA
    assert rows.column("expert").to_pylist() == [3, 200]
    assert rows.column("weight").to_pylist() == [0.75, 0.25]


def test_token_ids_may_lie_far_apart() -> None:
    tokens = make_tokens([3], token_id=[2_000_000_000, 7, 2_000_000_000], pieces=["low", "high"])
    rows = assignment_rows(tokens, make_layers(3, top_k=(1,)))
    assert rows.column("token").to_pylist() == ["high", "low", "high"]


def test_prompts_without_tokens_have_no_rows() -> None:
    tokens = replace(make_tokens([2]), prompt_ids=["p", "q"], domains=["code", "law"])
    rows = assignment_rows(tokens, make_layers(2, top_k=(3,)))
    assert rows.column("prompt_id").to_pylist() == ["p"] * 6
    assert rows.column("domain").to_pylist() == ["code"] * 6


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
