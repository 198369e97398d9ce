"""Windows of decisions, cut to some tokens, put into another order, and joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.window import DecisionWindow, LayerChoices

# The stack of tokens that none of the layers decided for.
NO_STACK = -1


def keep_layers(window: DecisionWindow, places: Collection[Place]) -> DecisionWindow:
    """Return a window with the decisions of some layers, and the tokens that these decided for."""
    layers = {place: choices for place, choices in window.layers.items() if place in places}
    kept = np.zeros(len(window.prompt), dtype=bool)
    for choices in layers.values():
        kept[choices.token] = True
    return take_tokens(replace(window, layers=layers), np.flatnonzero(kept))


def take_tokens(window: DecisionWindow, tokens: NDArray[np.intp]) -> DecisionWindow:
    """Return some tokens of a window, in the order given.

    Args:
        tokens: Indices into its tokens, each at most once. # (num_taken,)
    """
    new = np.full(len(window.prompt), -1, dtype=np.int64)
    new[tokens] = np.arange(len(tokens))
    return DecisionWindow(
        prompt=window.prompt[tokens],
        group=window.group[tokens],
        position=window.position[tokens],
        token_id=None if window.token_id is None else window.token_id[tokens],
        phase=None if window.phase is None else window.phase[tokens],
        layers={place: _renumber(choices, new) for place, choices in window.layers.items()},
        pieces=window.pieces,
    )


def join_windows(windows: Sequence[DecisionWindow]) -> DecisionWindow:
    """Return the tokens of at least one window, one window after the other."""
    if len(windows) == 1:
        return windows[0]
    starts = np.cumsum([0, *(len(window.prompt) for window in windows)])
    places = dict.fromkeys(place for window in windows for place in window.layers)
    pieces: dict[int, str] = {}
    for window in windows:
        pieces.update(window.pieces)
    return DecisionWindow(
        prompt=np.concatenate([window.prompt for window in windows]),
        group=np.concatenate([window.group for window in windows]),
        position=np.concatenate([window.position for window in windows]),
        token_id=_join([window.token_id for window in windows]),
        phase=_join([window.phase for window in windows]),
        layers={
            place: _join_choices(
                [
                    (window.layers[place], int(start))
                    for window, start in zip(windows, starts[:-1], strict=True)
                    if place in window.layers
                ]
            )
            for place in places
        },
        pieces=pieces,
    )


def find_stacks(window: DecisionWindow, stacks: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the number of each token's stack; `NO_STACK` for tokens without a decision.

    Args:
        stacks: The number of each stack that the window has.

    Returns:
        # (num_tokens,)
    """
    stack = np.full(len(window.prompt), NO_STACK, dtype=np.int64)
    for (name, _), choices in window.layers.items():
        stack[choices.token] = stacks[name]
    return stack


def _renumber(choices: LayerChoices, new: NDArray[np.int64]) -> LayerChoices:
    token = new[choices.token]
    kept = np.flatnonzero(token >= 0)
    token = token[kept]
    if (np.diff(token) < 0).any():
        order = np.argsort(token, kind="stable")
        kept, token = kept[order], token[order]
    if len(kept) == len(choices.token) and (np.diff(kept) == 1).all():
        return replace(choices, token=token)
    return LayerChoices(
        token=token,
        experts=choices.experts[kept],
        weights=None if choices.weights is None else choices.weights[kept],
    )


def _join_choices(parts: Sequence[tuple[LayerChoices, int]]) -> LayerChoices:
    """Return the decisions of one layer in several windows, each with its first token's number."""
    width = max(choices.experts.shape[1] for choices, _ in parts)
    return LayerChoices(
        token=np.concatenate([choices.token + start for choices, start in parts]),
        experts=np.concatenate([_widen(choices.experts, width, NO_EXPERT) for choices, _ in parts]),
        weights=_join(
            [
                None if choices.weights is None else _widen(choices.weights, width, 0)
                for choices, _ in parts
            ]
        ),
    )


def _widen(values: NDArray[Any], width: int, filler: int) -> NDArray[Any]:
    missing = width - values.shape[1]
    return np.pad(values, [(0, 0), (0, missing)], constant_values=filler) if missing else values


def _join(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
