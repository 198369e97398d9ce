"""Rows of a trace, made from decisions: one for each assignment, in the order of the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import PHASES, LayerDecisions, TracedTokens
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA


def assignment_rows(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> pa.Table:
    """Return a table with `TRACE_SCHEMA`, ordered by prompt, layer as given, position and rank.

    `rank` orders a decision's assignments by weight, largest first; equal weights keep the
    router's order.
    """
    order, token, layer = _decision_order(tokens, num_layers=len(layers))
    ranked = [_rank(decisions) for decisions in layers]
    top_k = np.array([experts.shape[1] for experts, _ in ranked])[layer]  # (num_decisions,)
    # Start of each decision's assignments, with those of all layers laid end to end.
    starts = (np.cumsum(top_k) - top_k)[order]
    token, layer, width = token[order], layer[order], top_k[order]
    columns = {**_token_columns(tokens, token), **_layer_columns(layers, layer)}
    row_starts = np.cumsum(width) - width
    rank = np.arange(width.sum()) - np.repeat(row_starts, width)
    source = np.repeat(starts, width) + rank
    return pa.table(
        {
            **{name: _repeat(column, width) for name, column in columns.items()},
            "rank": rank.astype(np.int16),
            "expert": np.concatenate([experts.ravel() for experts, _ in ranked])[source],
            "weight": np.concatenate([weights.ravel() for _, weights in ranked])[source],
        },
        schema=TRACE_SCHEMA,
    )


def probability_rows(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> pa.Table:
    """Return a table with `PROBABILITIES_SCHEMA`: one row for each decision, in trace order."""
    order, token, layer = _decision_order(tokens, num_layers=len(layers))
    num_tokens = len(tokens.token_id)
    offsets: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float16]] = []
    for decisions in layers:
        assert decisions.probabilities is not None
        values.append(decisions.probabilities.ravel())
        offsets.append(np.full(num_tokens, decisions.probabilities.shape[1]))
    widths = np.concatenate(offsets)
    lists = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(widths)]).astype(np.int32),
        pa.array(np.concatenate(values), type=pa.float16()),
    ).take(pa.array(order))
    token_columns = _token_columns(tokens, token[order])
    return pa.table(
        {
            "prompt_id": token_columns["prompt_id"],
            **_layer_columns(layers, layer[order]),
            "position": token_columns["position"],
            "probabilities": lists,
        },
        schema=PROBABILITIES_SCHEMA,
    )


def merge_by_prompt(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables over the same prompts, grouped by prompt.

    Within a prompt they keep the order of the tables. An encoder-decoder has a table for each stack.
    """
    if len(tables) == 1:
        return tables[0]
    table = pa.concat_tables(tables).unify_dictionaries()
    prompts = table.column("prompt_id").combine_chunks().indices.to_numpy()
    return table.take(pa.array(np.argsort(prompts, kind="stable")))


def _decision_order(
    tokens: TracedTokens, *, num_layers: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the order of the decisions, and the token and layer of each before ordering.

    Before ordering, decisions lie layer by layer, each layer with all tokens.
    """
    num_tokens = len(tokens.token_id)
    token = np.tile(np.arange(num_tokens), num_layers)  # (num_decisions,)
    layer = np.repeat(np.arange(num_layers), num_tokens)  # (num_decisions,)
    key = tokens.prompt[token].astype(np.int64) * num_layers + layer
    return np.argsort(key, kind="stable"), token, layer


def _rank(decisions: LayerDecisions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return experts and weights, the largest weight of each decision first."""
    order = np.argsort(-decisions.weights, axis=1, kind="stable")  # (num_tokens, top_k)
    return (
        np.take_along_axis(decisions.experts, order, axis=1).astype(np.int16),
        np.take_along_axis(decisions.weights, order, axis=1),
    )


def _token_columns(tokens: TracedTokens, index: NDArray[np.intp]) -> dict[str, Any]:
    prompt = tokens.prompt[index]
    token_ids, token_codes = np.unique(tokens.token_id, return_inverse=True)
    assert len(token_ids) == len(tokens.pieces)
    domains, domain_codes = np.unique(np.array(tokens.domains, dtype=object), return_inverse=True)
    return {
        "prompt_id": _encode(prompt, tokens.prompt_ids),
        "domain": _encode(domain_codes[prompt], list(domains)),
        "phase": _encode(tokens.phase[index], PHASES),
        "position": tokens.position[index],
        "token_id": tokens.token_id[index],
        "token": _encode(token_codes[index], tokens.pieces),
    }


def _layer_columns(layers: Sequence[LayerDecisions], index: NDArray[np.intp]) -> dict[str, Any]:
    stacks = sorted({decisions.stack for decisions in layers})
    stack_codes = np.array([stacks.index(decisions.stack) for decisions in layers])
    numbers = np.array([decisions.layer for decisions in layers], dtype=np.int16)
    return {"stack": _encode(stack_codes[index], stacks), "layer": numbers[index]}


def _repeat(
    column: NDArray[Any] | pa.DictionaryArray, width: NDArray[np.intp]
) -> NDArray[Any] | pa.DictionaryArray:
    """Return a column of decisions as a column of assignments."""
    if isinstance(column, pa.DictionaryArray):
        codes = np.repeat(column.indices.to_numpy(), width)
        return pa.DictionaryArray.from_arrays(codes, column.dictionary)
    return np.repeat(column, width)


def _encode(codes: NDArray[Any], words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        codes.astype(np.int32, copy=False), pa.array(words, type=pa.string())
    )
