"""Rows of whole prompts, put together into the decisions of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place


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


@dataclass(frozen=True)
class WindowRows:
    """Rows of a trace as numbers; each array has one entry for each row.

    Attributes:
        prompt: Index of the prompt.
        place: Index of the layer among those that are read.
        group: Index of the group.
        position: As in the trace's column; expert, rank, weight and token id, too.
        phase: Index into `PHASES`, or -1.
        pieces: The piece of each token id.
    """

    prompt: NDArray[np.int64]
    place: NDArray[np.int16]
    group: NDArray[np.int64]
    position: NDArray[np.int64]
    expert: NDArray[np.int64]
    rank: NDArray[np.int64] | None
    weight: NDArray[np.float32] | None
    token_id: NDArray[np.int64] | None
    phase: NDArray[np.int8] | None
    pieces: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, index: NDArray[Any]) -> WindowRows:
        """Return the rows at an index, or where a mask is true."""
        taken: dict[str, Any] = {"pieces": self.pieces}
        for name in _ARRAYS:
            column = getattr(self, name)
            taken[name] = None if column is None else column[index]
        return WindowRows(**taken)


_ARRAYS = tuple(item.name for item in fields(WindowRows) if item.name != "pieces")


def join_window_rows(parts: Sequence[WindowRows]) -> WindowRows:
    """Return the rows of several parts, one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {"pieces": {}}
    for part in parts:
        joined["pieces"].update(part.pieces)
    for name in _ARRAYS:
        columns = [getattr(part, name) for part in parts]
        joined[name] = None if columns[0] is None else np.concatenate(columns)
    return WindowRows(**joined)


def build_window(
    rows: WindowRows, layers: Sequence[RoutedLayer], *, has_rank: bool
) -> DecisionWindow:
    """Return the decisions in rows that hold whole prompts.

    Args:
        rows: At least one, in any order.
        layers: The layers that `rows.place` indexes.
        has_rank: Order the experts of a decision by rank.
    """
    rows = _sort(rows, has_rank=has_rank)
    starts = _find_changes(rows.place, rows.prompt, rows.position)
    place = rows.place[starts]
    places = np.unique(place)
    of_place = {int(one): np.flatnonzero(place == one) for one in places}
    stacks = sorted({layers[one].stack for one in of_place})
    first_rows: list[NDArray[np.intp]] = []  # One row for each token, stack by stack.
    choices: dict[Place, LayerChoices] = {}
    num_tokens = 0
    sizes = np.diff(starts, append=len(rows))
    for stack in stacks:
        mine = [one for one in of_place if layers[one].stack == stack]
        tokens, indices = _align([starts[of_place[one]] for one in mine], rows)
        first_rows.append(tokens)
        for one, index in zip(mine, indices, strict=True):
            decisions = of_place[one]
            choices[stack, layers[one].layer] = _gather(
                rows,
                starts[decisions],
                sizes[decisions],
                token=index + num_tokens,
                top_k=layers[one].top_k,
            )
        num_tokens += len(tokens)
    token_rows = np.concatenate(first_rows)
    return DecisionWindow(
        prompt=rows.prompt[token_rows],
        group=rows.group[token_rows],
        position=rows.position[token_rows],
        token_id=None if rows.token_id is None else rows.token_id[token_rows],
        phase=None if rows.phase is None else rows.phase[token_rows],
        layers=choices,
        pieces=rows.pieces,
    )


def _sort(rows: WindowRows, *, has_rank: bool) -> WindowRows:
    """Return rows in the order of layer, prompt, position and rank."""
    # Rows of a trace are ordered by prompt, layer, position and rank: sorting by layer suffices.
    rows = rows.take(np.argsort(rows.place, kind="stable"))
    keys: list[NDArray[Any]] = [rows.position, rows.prompt, rows.place]
    if has_rank and rows.rank is not None:
        keys.insert(0, rows.rank)
    if _is_sorted(keys):
        return rows
    return rows.take(np.lexsort(keys))


def _is_sorted(keys: Sequence[NDArray[Any]]) -> bool:
    """Return whether rows ascend by the last key, then the one before it, and so on."""
    falls = np.zeros(len(keys[0]) - 1, dtype=bool)
    equal = np.ones(len(keys[0]) - 1, dtype=bool)
    for key in reversed(keys):
        falls |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    return not falls.any()


def _find_changes(*values: NDArray[Any]) -> NDArray[np.intp]:
    changes = np.zeros(len(values[0]), dtype=bool)
    changes[:1] = True
    for value in values:
        changes[1:] |= value[1:] != value[:-1]
    return np.flatnonzero(changes)


def _align(
    decisions: Sequence[NDArray[np.intp]], rows: WindowRows
) -> tuple[NDArray[np.intp], list[NDArray[np.int64]]]:
    """Return a row of each token of a stack, and the tokens of each layer's decisions.

    Args:
        decisions: For each layer, the first row of each decision, by prompt and position.
        rows: In the order of layer, prompt, position and rank.
    """
    width = int(rows.position.max()) + 1
    keys = [rows.prompt[first] * width + rows.position[first] for first in decisions]
    if all(np.array_equal(key, keys[0]) for key in keys[1:]):
        return decisions[0], [np.arange(len(keys[0]), dtype=np.int64)] * len(keys)
    distinct, index = np.unique(np.concatenate(keys), return_index=True)
    return np.concatenate(decisions)[index], [np.searchsorted(distinct, key) for key in keys]


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
        return LayerChoices(token, rows.expert[begin:end].reshape(shape), weights)
    slot = np.arange(end - begin) - np.repeat(starts - begin, sizes)
    decision = np.repeat(np.arange(len(starts)), sizes)
    experts = np.full(shape, NO_EXPERT, dtype=np.int64)
    experts[decision, slot] = rows.expert[begin:end]
    if rows.weight is None:
        return LayerChoices(token, experts, None)
    weights = np.zeros(shape, dtype=np.float32)
    weights[decision, slot] = rows.weight[begin:end]
    return LayerChoices(token, experts, weights)
