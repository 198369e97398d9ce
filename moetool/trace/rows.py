"""Rows of a trace, made from decisions: one for each assignment, in the order of the key.

Values are gathered by `take` and spread by assignment, which copy without holding the GIL: a thread
makes rows while another one feeds a GPU. They are put into memory of pyarrow's pool, which keeps what
the rows before them needed: new pages would cost more than filling them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.trace.decisions import PHASES, LayerDecisions, TracedTokens
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA

# numpy fills shorter rows of a matrix faster by its columns.
_LONG_ROW = 8


def assignment_rows(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> pa.Table:
    """Return a table with `TRACE_SCHEMA`, ordered by prompt, layer as given, position and rank.

    `rank` orders a decision's assignments by weight, largest first; equal weights keep the
    router's order.
    """
    token, layer = _order_decisions(tokens, num_layers=len(layers))
    columns = {**_token_columns(tokens, token), **_layer_columns(layers, layer)}
    top_k = np.array([decisions.experts.shape[1] for decisions in layers])
    if (top_k == top_k[0]).all():
        width = int(top_k[0])
        spread = {name: _spread(column, width) for name, column in columns.items()}
        rank = _spread_ranks(len(token), width)
        experts, weights = _take_ranked(layers, layer, token)
    else:
        widths = top_k[layer]  # (num_decisions,)
        decision = np.repeat(np.arange(len(token)), widths)  # (num_rows,)
        spread = {name: _take(column, decision) for name, column in columns.items()}
        rank = np.arange(len(decision)) - (np.cumsum(widths) - widths)[decision]
        experts, weights = _take_mixed(layers, layer, token, width=widths[decision])
    return pa.table(
        {
            **spread,
            "rank": rank.astype(np.int16, copy=False),
            "expert": experts.ravel(),
            "weight": weights.ravel(),
        },
        schema=TRACE_SCHEMA,
    )


def probability_rows(tokens: TracedTokens, layers: Sequence[LayerDecisions]) -> pa.Table:
    """Return a table with `PROBABILITIES_SCHEMA`: one row for each decision, in trace order."""
    token, layer = _order_decisions(tokens, num_layers=len(layers))
    token_columns = _token_columns(tokens, token)
    return pa.table(
        {
            "prompt_id": token_columns["prompt_id"],
            **_layer_columns(layers, layer),
            "position": token_columns["position"],
            "probabilities": _take_probabilities(layers, layer, token),
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


def _order_decisions(
    tokens: TracedTokens, *, num_layers: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the index of the token and of the layer of each decision, in the order of the trace."""
    by_prompt = np.argsort(tokens.prompt, kind="stable")
    prompt = tokens.prompt[by_prompt]
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    # Decisions of one prompt and layer are a run: they lie together, in the order of the tokens.
    lengths = np.repeat(np.diff(starts, append=len(prompt)), num_layers)  # (num_runs,)
    shifts = np.repeat(starts, num_layers) - (np.cumsum(lengths) - lengths)
    layers = np.tile(np.arange(num_layers), len(starts))
    token = by_prompt.take(np.arange(len(prompt) * num_layers) + np.repeat(shifts, lengths))
    return token, np.repeat(layers, lengths)


def _take_ranked(
    layers: Sequence[LayerDecisions], layer: NDArray[np.intp], token: NDArray[np.intp]
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return experts and weights of decisions, the largest weight of each decision first.

    Args:
        layers: Those of the decisions, all with the same number of experts.
        layer: Index of each decision's layer. # (num_decisions,)
        token: Index of its token. # (num_decisions,)
    """
    source = layer * len(layers[0].experts) + token
    experts = _gather([decisions.experts for decisions in layers], source)
    weights = _gather([decisions.weights for decisions in layers], source)
    experts = experts.astype(np.int16, copy=False)
    weights = weights.astype(np.float32, copy=False)
    unordered = _find_unordered(weights)
    if len(unordered):
        chosen = weights.take(unordered, axis=0)
        order = _rank(chosen)
        weights[unordered] = chosen.ravel().take(order)
        experts[unordered] = experts.take(unordered, axis=0).ravel().take(order)
    return experts, weights


def _take_mixed(
    layers: Sequence[LayerDecisions],
    layer: NDArray[np.intp],
    token: NDArray[np.intp],
    *,
    width: NDArray[np.intp],
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return what `_take_ranked` does for layers that differ in their number of experts.

    Args:
        layers: Those of the decisions.
        layer: Index of each decision's layer. # (num_decisions,)
        token: Index of its token. # (num_decisions,)
        width: Number of experts of the decision of each assignment. # (num_rows,)
    """
    experts = np.empty(len(width), dtype=np.int16)
    weights = np.empty(len(width), dtype=np.float32)
    top_k = np.array([decisions.experts.shape[1] for decisions in layers])
    for number in np.unique(top_k):
        (alike,) = np.nonzero(top_k == number)
        (chosen,) = np.nonzero(top_k[layer] == number)
        index = np.searchsorted(alike, layer[chosen])  # Of each decision's layer among them.
        ranked = _take_ranked([layers[one] for one in alike.tolist()], index, token[chosen])
        rows = width == number
        experts[rows], weights[rows] = (values.ravel() for values in ranked)
    return experts, weights


def _find_unordered(weights: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the decisions in which a weight isn't known to be at most the one before it."""
    top_k = weights.shape[1]
    flat = weights.ravel()
    rises = ~(flat[1:] <= flat[:-1])
    rises[top_k - 1 :: top_k] = False  # From one decision to the next.
    decisions: NDArray[np.intp] = np.flatnonzero(rises) // top_k
    return decisions[np.diff(decisions, prepend=-1) > 0]


def _rank(weights: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the index of each decision's weights, the largest first, in the flattened array.

    Equal weights keep their order, and NaN comes last, as in a stable sort of the negated weights.
    """
    top_k = weights.shape[1]
    # Adding zero turns -0 into 0. The bits of floats sort as integers, except that negative ones
    # sort the wrong way round.
    bits = (weights + np.float32(0)).view(np.int32)
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = np.where(np.isnan(weights), np.iinfo(np.int32).max, ~ascending).astype(np.int64)
    # The place in the lower half makes equal weights differ; sorting numbers is far faster than
    # sorting indices by them.
    places = np.sort(keys << 32 | np.arange(top_k), axis=1) & 0xFFFFFFFF
    return places + np.arange(0, weights.size, top_k)[:, np.newaxis]


def _take_probabilities(
    layers: Sequence[LayerDecisions], layer: NDArray[np.intp], token: NDArray[np.intp]
) -> pa.ListArray:
    values: list[NDArray[np.float16]] = []
    for decisions in layers:
        assert decisions.probabilities is not None
        values.append(decisions.probabilities)
    source = layer * len(values[0]) + token
    widths = [probabilities.shape[1] for probabilities in values]
    if len(set(widths)) == 1:
        ordered = _gather(values, source)
        offsets = np.arange(0, ordered.size + 1, widths[0], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(ordered.ravel(), type=pa.float16()))
    ends = np.cumsum(np.repeat(widths, len(values[0])))
    flat = np.concatenate([probabilities.ravel() for probabilities in values])
    lists = pa.ListArray.from_arrays(
        np.concatenate([[0], ends]).astype(np.int32), pa.array(flat, type=pa.float16())
    )
    return lists.take(pa.array(source))


def _token_columns(tokens: TracedTokens, index: NDArray[np.intp]) -> dict[str, Any]:
    prompt = tokens.prompt.take(index)
    num_ids, token_codes = _encode_ids(tokens.token_id)
    assert num_ids == len(tokens.pieces)
    domains, domain_codes = np.unique(np.array(tokens.domains, dtype=object), return_inverse=True)
    return {
        "prompt_id": _encode(prompt, tokens.prompt_ids),
        "domain": _encode(domain_codes.take(prompt), list(domains)),
        "phase": _encode(tokens.phase.take(index), PHASES),
        "position": tokens.position.take(index),
        "token_id": tokens.token_id.take(index),
        "token": _encode(token_codes.take(index), tokens.pieces),
    }


def _layer_columns(layers: Sequence[LayerDecisions], index: NDArray[np.intp]) -> dict[str, Any]:
    stacks = sorted({decisions.stack for decisions in layers})
    stack_codes = np.array([stacks.index(decisions.stack) for decisions in layers])
    numbers = np.array([decisions.layer for decisions in layers], dtype=np.int16)
    return {"stack": _encode(stack_codes.take(index), stacks), "layer": numbers.take(index)}


def _encode_ids(ids: NDArray[np.int32]) -> tuple[int, NDArray[np.int32]]:
    """Return the number of distinct ids, and the index of each among them in ascending order."""
    if len(ids) and ids.min() >= 0 and int(ids.max()) <= 4 * len(ids):
        occurs = np.zeros(int(ids.max()) + 1, dtype=bool)
        occurs[ids] = True
        codes = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
        return int(codes[-1]) + 1, codes.take(ids)
    distinct, index = np.unique(ids, return_inverse=True)
    return len(distinct), index.astype(np.int32)


def _gather(layers: Sequence[NDArray[Any]], source: NDArray[np.intp]) -> NDArray[Any]:
    """Return rows of several arrays laid end to end.

    Args:
        layers: Arrays of the same shape and type. # (num_tokens, num_values)
        source: Index of each row. # (num_decisions,)
    """
    kind, width = layers[0].dtype, layers[0].shape[1]
    joined = _allocate((sum(len(values) for values in layers), width), kind)
    np.concatenate(layers, out=joined)
    # Clipping, which no index needs, lets `take` write to the array without a copy.
    return joined.take(source, axis=0, mode="clip", out=_allocate((len(source), width), kind))


def _allocate(shape: tuple[int, int], kind: np.dtype[Any]) -> NDArray[Any]:
    buffer = pa.allocate_buffer(shape[0] * shape[1] * kind.itemsize)
    return np.frombuffer(buffer, dtype=kind).reshape(shape)


def _spread(
    column: NDArray[Any] | pa.DictionaryArray, top_k: int
) -> NDArray[Any] | pa.DictionaryArray:
    """Return a column of decisions as a column of assignments, the same number for each decision."""
    if isinstance(column, pa.DictionaryArray):
        return _with_codes(column, _spread(column.indices.to_numpy(), top_k))
    rows = _allocate((len(column), top_k), column.dtype)
    if top_k < _LONG_ROW:
        for rank in range(top_k):
            rows[:, rank] = column
    else:
        rows[:] = column[:, np.newaxis]
    return rows.ravel()


def _spread_ranks(num_decisions: int, top_k: int) -> NDArray[np.int16]:
    rows = _allocate((num_decisions, top_k), np.dtype(np.int16))
    rows[:] = np.arange(top_k, dtype=np.int16)
    return rows.ravel()


def _take(
    column: NDArray[Any] | pa.DictionaryArray, decision: NDArray[np.intp]
) -> NDArray[Any] | pa.DictionaryArray:
    """Return a column of decisions as a column of assignments, given the decision of each."""
    if isinstance(column, pa.DictionaryArray):
        return _with_codes(column, column.indices.to_numpy().take(decision))
    return column.take(decision)


def _with_codes(column: pa.DictionaryArray, codes: NDArray[Any]) -> pa.DictionaryArray:
    """Return a column with the same words and other codes, each of which occurs in it."""
    return pa.DictionaryArray.from_arrays(codes, column.dictionary, safe=False)


def _encode(codes: NDArray[Any], words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(
        codes.astype(np.int32, copy=False), pa.array(words, type=pa.string())
    )
