"""Rows of whole prompts, put together into the decisions of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.scanning.columns import find_changes
from moetool.trace.windows.window_rows import WindowRows


@dataclass(frozen=True)
class LayerChoices:
    """The decisions of one routed layer for tokens of a window.

    Attributes:
        token: Ascending index into the window's tokens. # (num_decisions,)
        experts: In order of rank if the trace has ranks, else of rows; `NO_EXPERT` where fewer
            experts ran. # (num_decisions, top_k)
        weights: Of the experts; 0 where none ran. # (num_decisions, top_k)
    """

    token: NDArray[np.int64]
    experts: NDArray[np.int64]
    weights: NDArray[np.float32] | None


@dataclass(frozen=True)
class DecisionWindow:
    """The tokens of some whole prompts, in the order of stack, prompt and position.

    Attributes:
        prompt: Index into the reader's prompts. # (num_tokens,)
        group: Index into the reader's groups. # (num_tokens,)
        position: As in the trace's column. # (num_tokens,)
        token_id: None if it was not read. # (num_tokens,)
        phase: Index into `PHASES`, -1 for other words; None if it was not read. # (num_tokens,)
        layers: By stack and layer, in that order; layers without decisions are left out.
        pieces: The piece of each token id, if they were read.
    """

    prompt: NDArray[np.int64]
    group: NDArray[np.int64]
    position: NDArray[np.int64]
    token_id: NDArray[np.int64] | None
    phase: NDArray[np.int8] | None
    layers: Mapping[Place, LayerChoices]
    pieces: Mapping[int, str] = field(default_factory=dict)


def build_window(
    rows: WindowRows,
    layers: Sequence[RoutedLayer],
    *,
    has_rank: bool,
    pieces: Sequence[str] = (),
) -> DecisionWindow:
    """Return the decisions in rows that hold whole prompts.

    Args:
        rows: At least one; runs in the order of layer and prompt, rows in any order within those
            of one layer and prompt.
        layers: The layers that `rows.place` indexes.
        has_rank: Order the experts of a decision by rank.
        pieces: The words that `rows.piece` indexes.
    """
    starts = _find_decisions(rows, has_rank=has_rank)
    if starts is None:
        rows = rows.sort(has_rank=has_rank)
        starts = _find_decisions(rows, has_rank=False)
        assert starts is not None
    run = np.repeat(np.arange(len(rows.size), dtype=np.int32), rows.size)[starts]
    keys = Keys(rows.prompt[run], rows.position[starts])  # (num_decisions,)
    sizes = np.diff(starts, append=len(rows))
    place = rows.place[run]
    bounds = np.append(np.flatnonzero(find_changes(place)), len(place))
    spans = {int(place[start]): slice(int(start), int(end)) for start, end in pairwise(bounds)}
    token_rows: list[NDArray[np.intp]] = []  # One row for each token, stack by stack.
    choices: dict[Place, LayerChoices] = {}
    num_tokens = 0
    for stack in sorted({layers[one].stack for one in spans}):
        mine = [one for one in spans if layers[one].stack == stack]
        first, indices = _align([spans[one] for one in mine], keys)
        token_rows.append(starts[first])
        for one, index in zip(mine, indices, strict=True):
            choices[stack, layers[one].layer] = _gather(
                rows,
                starts[spans[one]],
                sizes[spans[one]],
                token=index + num_tokens if num_tokens else index,
                top_k=layers[one].top_k,
            )
        num_tokens += len(first)
    token_row = np.concatenate(token_rows)
    of_token = np.searchsorted(np.cumsum(rows.size), token_row, side="right")
    return DecisionWindow(
        prompt=rows.prompt[of_token],
        group=rows.group[of_token],
        position=rows.position[token_row].astype(np.int64),
        token_id=None if rows.token_id is None else rows.token_id[token_row].astype(np.int64),
        phase=None if rows.phase is None else rows.phase[token_row],
        layers=choices,
        pieces=_find_pieces(rows, token_row, pieces),
    )


def _find_decisions(rows: WindowRows, *, has_rank: bool) -> NDArray[np.intp] | None:
    """Return the first row of each decision; None if rows are not in order."""
    position = rows.position
    # Runs of other groups go on with the same prompt and layer.
    begins = find_changes(rows.place, rows.prompt)
    goes_on = np.ones(len(rows), dtype=bool)
    goes_on[(np.cumsum(rows.size) - rows.size)[begins]] = False
    falls = goes_on[1:] & (position[1:] < position[:-1])
    goes_on[1:] &= position[1:] == position[:-1]
    if has_rank and rows.rank is not None:
        falls |= goes_on[1:] & (rows.rank[1:] < rows.rank[:-1])
    return None if falls.any() else np.flatnonzero(~goes_on)


@dataclass(frozen=True)
class Keys:
    """Prompt and position of each decision."""

    prompt: NDArray[np.int64]
    position: NDArray[np.int32]

    def match(self, one: slice, other: slice) -> bool:
        """Return whether two layers decide for the same tokens."""
        return np.array_equal(self.position[one], self.position[other]) and np.array_equal(
            self.prompt[one], self.prompt[other]
        )


def _align(spans: Sequence[slice], keys: Keys) -> tuple[NDArray[np.intp], list[NDArray[np.int64]]]:
    """Return a decision of each token of a stack, and the tokens of each layer's decisions.

    Args:
        spans: The decisions of each layer, by prompt and position.
        keys: Of all decisions.
    """
    first = spans[0]
    if all(keys.match(first, span) for span in spans[1:]):
        token = np.arange(first.stop - first.start, dtype=np.int64)
        return token + first.start, [token] * len(spans)
    width = int(keys.position.max()) + 1
    numbers = keys.prompt * width + keys.position
    order = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    distinct, index = np.unique(numbers[order], return_index=True)
    return order[index], [np.searchsorted(distinct, numbers[span]) for span in spans]


def _gather(
    rows: WindowRows,
    starts: NDArray[np.intp],
    sizes: NDArray[np.intp],
    *,
    token: NDArray[np.int64],
    top_k: int,
) -> LayerChoices:
    """Return the decisions of one layer whose rows lie together."""
    # Only rows that were not checked can be more than top-k.
    width = max(top_k, int(sizes.max()))
    shape = (len(starts), width)
    begin, end = int(starts[0]), int(starts[-1] + sizes[-1])
    if (sizes == width).all():
        weights = None if rows.weight is None else rows.weight[begin:end].reshape(shape)
        experts = rows.expert[begin:end].astype(np.int64).reshape(shape)
        return LayerChoices(token, experts, weights)
    slot = np.arange(end - begin) - np.repeat(starts - begin, sizes)
    decision = np.repeat(np.arange(len(starts)), sizes)
    experts = np.full(shape, NO_EXPERT, dtype=np.int64)
    experts[decision, slot] = rows.expert[begin:end]
    if rows.weight is None:
        return LayerChoices(token, experts, None)
    weights = np.zeros(shape, dtype=np.float32)
    weights[decision, slot] = rows.weight[begin:end]
    return LayerChoices(token, experts, weights)


def _find_pieces(
    rows: WindowRows, token_row: NDArray[np.intp], pieces: Sequence[str]
) -> dict[int, str]:
    """Return the piece of each token id, if the rows have both."""
    if rows.piece is None or rows.token_id is None:
        return {}
    ids, piece = rows.token_id[token_row], rows.piece[token_row]
    _, index = np.unique(ids, return_index=True)
    return {int(ids[one]): pieces[piece[one]] for one in index}
