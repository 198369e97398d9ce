"""The calls of a window's batches, collected into its tokens in order and each layer's decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UntraceableError
from moetool.trace.decisions import NO_EXPERT, PHASES
from moetool.tracing.recording.calls import RecordedCall, RecordedLayer, TokenAxis
from moetool.wording import number_of


@dataclass(frozen=True)
class RoutedSequence:
    """The tokens of one prompt that pass one stack.

    Attributes:
        token_ids: # (num_tokens,)
        num_given: Number of tokens that were given; those after them were generated.
    """

    token_ids: NDArray[np.int32]
    num_given: int


@dataclass(frozen=True)
class TracedBatch:
    """The tokens and recorded calls of one batch of a window.

    Attributes:
        prompts: Index of each row's prompt in the window. # (batch_size,)
        sequences: By scope (see `RecordedCall.scope`), each row's tokens.
        calls: In the order in which they ran.
    """

    prompts: NDArray[np.int32]
    sequences: Mapping[str, Sequence[RoutedSequence]]
    calls: Sequence[RecordedCall]


@dataclass(frozen=True)
class CollectedScope:
    """One scope's tokens over a window, ordered by prompt, then position.

    Attributes:
        prompt: Index in the window. # (num_tokens,)
        position: # (num_tokens,)
        token_id: # (num_tokens,)
        phase: Index into `PHASES`. # (num_tokens,)
        layers: The decisions of each of the scope's layers for them.
    """

    prompt: NDArray[np.int32]
    position: NDArray[np.int32]
    token_id: NDArray[np.int32]
    phase: NDArray[np.int8]
    layers: Sequence[RecordedLayer]


def collect_scopes(batches: Sequence[TracedBatch]) -> list[CollectedScope]:
    """Return every scope that was called, with its tokens in order.

    `generate` keeps feeding rows that have ended, and without a cache feeds all tokens again at
    every step: a token counts when it first passes, and only if it belongs to its row's sequence.

    Raises:
        UntraceableError: A token of a sequence never passed a layer, or passed it more than once.
    """
    refuse_apart(call for batch in batches for call in batch.calls)
    scopes = list(dict.fromkeys(call.scope for batch in batches for call in batch.calls))
    return [_collect_scope(batches, scope) for scope in scopes]


def cut_scopes(scopes: Sequence[CollectedScope], prompts: range) -> list[CollectedScope]:
    """Return the part of each scope that holds consecutive prompts, which are counted from 0 again."""
    return [_cut_scope(scope, prompts) for scope in scopes]


def refuse_apart(calls: Iterable[RecordedCall]) -> None:
    """Refuse calls that no trace has a place for.

    Raises:
        UntraceableError: A layer ran more than once in a call, or on other tokens than its prompts'.
    """
    for call in calls:
        path = call.layers[0].layer.experts_path
        if call.run:
            raise UntraceableError(
                f"{path} ran twice in one forward call.",
                hint="A trace holds one decision of each layer for a token. RoutingRecorder records "
                "every run.",
            )
        if call.token_axis is not TokenAxis.INPUT:
            raise UntraceableError(
                f"{path} received {number_of(len(call.position), 'token')} that are not those of the "
                "prompts.",
                hint="A trace holds tokens of prompts. RoutingRecorder records any.",
            )


def _cut_scope(scope: CollectedScope, prompts: range) -> CollectedScope:
    first, last = np.searchsorted(scope.prompt, (prompts.start, prompts.stop)).tolist()
    part = slice(first, last)
    return CollectedScope(
        prompt=scope.prompt[part] - np.int32(prompts.start),
        position=scope.position[part],
        token_id=scope.token_id[part],
        phase=scope.phase[part],
        layers=[
            RecordedLayer(
                layer=each.layer,
                experts=each.experts[part],
                weights=each.weights[part],
                scores=None if each.scores is None else each.scores[part],
            )
            for each in scope.layers
        ],
    )


def count_rows(scopes: Sequence[CollectedScope], *, num_prompts: int) -> NDArray[np.int64]:
    """Return the number of assignments of each prompt.

    Returns:
        # (num_prompts,)
    """
    total = np.zeros(num_prompts, dtype=np.int64)
    for scope in scopes:
        width = sum(layer.experts.shape[1] for layer in scope.layers)
        total += width * np.bincount(scope.prompt, minlength=num_prompts)
    return total


def _collect_scope(batches: Sequence[TracedBatch], scope: str) -> CollectedScope:
    collected = [_collect_batch(batch, scope) for batch in batches]
    prompt, position, token_id, phase = (
        np.concatenate([getattr(part, name) for part in collected])
        for name in ("prompt", "position", "token_id", "phase")
    )
    order = np.lexsort((position, prompt))  # (num_tokens,)
    by_layer = zip(*(part.layers for part in collected), strict=True)
    return CollectedScope(
        prompt=prompt[order],
        position=position[order],
        token_id=token_id[order],
        phase=phase[order],
        layers=[_take(_join(parts), order) for parts in by_layer],
    )


def _collect_batch(batch: TracedBatch, scope: str) -> CollectedScope:
    calls = [call for call in batch.calls if call.scope == scope]
    sequences = batch.sequences[scope]
    row = np.concatenate([call.batch_index for call in calls])  # (num_seen,)
    position = np.concatenate([call.position for call in calls])
    lengths = np.array([len(sequence.token_ids) for sequence in sequences])
    num_given = np.array([sequence.num_given for sequence in sequences])
    # The first pass of each token of the row's sequence, ordered by row and position.
    width = max(int(position.max()), int(lengths.max())) + 1
    _, first = np.unique(row.astype(np.int64) * width + position, return_index=True)
    kept = first[position[first] < lengths[row[first]]]
    if len(kept) != lengths.sum():
        raise UntraceableError(
            f"{number_of(int(lengths.sum()), 'token')} went through the model, but only {len(kept):,} of them were seen.",
            hint="moetool records models that route every token of a call once.",
        )
    row, position = row[kept], position[kept]
    by_layer = zip(*(call.layers for call in calls), strict=True)
    return CollectedScope(
        prompt=batch.prompts[row],
        position=position,
        token_id=np.concatenate([sequence.token_ids for sequence in sequences]),
        phase=(position >= num_given[row]).astype(np.int8) * PHASES.index("decode"),
        layers=[_take(_join(parts), kept) for parts in by_layer],
    )


def _join(parts: Sequence[RecordedLayer]) -> RecordedLayer:
    """Return one layer's decisions in several calls, concatenated.

    With a varying number of experts per token, the result is as wide as the widest call.
    """
    width = max(part.experts.shape[1] for part in parts)
    scores = [part.scores for part in parts if part.scores is not None]
    return RecordedLayer(
        layer=parts[0].layer,
        experts=np.concatenate([_widen(part.experts, width, NO_EXPERT) for part in parts]),
        weights=np.concatenate([_widen(part.weights, width, 0) for part in parts]),
        scores=np.concatenate(scores) if len(scores) == len(parts) else None,
    )


def _widen(values: NDArray[Any], width: int, filler: int) -> NDArray[Any]:
    missing = ((0, 0), (0, width - values.shape[1]))
    return np.pad(values, missing, constant_values=filler)


def _take(layer: RecordedLayer, index: NDArray[np.intp]) -> RecordedLayer:
    return RecordedLayer(
        layer=layer.layer,
        experts=layer.experts.take(index, axis=0),
        weights=layer.weights.take(index, axis=0),
        scores=None if layer.scores is None else layer.scores.take(index, axis=0),
    )
