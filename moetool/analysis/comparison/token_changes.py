"""The tokens whose routing differs most between two traces, by token id and one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.pairs.reader import PairedWindow
from moetool.analysis.statistics.ratios import find_ratios, sum_prompts

# Tokens shown before and after one that changed.
_CONTEXT = 6


@dataclass(frozen=True)
class TokenIdChange:
    """The change in the routing of all occurrences of a token id.

    Attributes:
        token: The tokenizer's own piece; None if the traces have none.
        count: Tokens with this id that were compared.
        change: Mean over their decisions in all layers of one minus the overlap.
        change_low: Lower limit of its 95 % interval over prompts; None for a single prompt.
        change_high: Upper limit.
    """

    token_id: int
    token: str | None
    count: int
    change: float
    change_low: float | None
    change_high: float | None


@dataclass(frozen=True)
class TokenChange:
    """The change in the routing of a single token.

    Attributes:
        prompt_id: As in the trace's column.
        position: As in the trace's column.
        stack: As in the trace's column.
        token_id: None if the traces have none.
        token: The tokenizer's own piece; None if the traces have none.
        change: Mean over all layers of one minus the overlap.
        num_changed_layers: Layers whose sets of experts differ.
        num_layers: Layers that were compared.
        before: The pieces of the tokens before it, at most six; None where unknown.
        after: The pieces of those after it, at most six.
    """

    prompt_id: str
    position: int
    stack: str
    token_id: int | None
    token: str | None
    change: float
    num_changed_layers: int
    num_layers: int
    before: tuple[str | None, ...]
    after: tuple[str | None, ...]


@dataclass(frozen=True)
class WindowChanges:
    """Each token's change, summed over the layers of a window.

    Attributes:
        change: Sum of one minus the overlap. # (num_tokens,)
        num_layers: Layers that were compared. # (num_tokens,)
        num_changed: Layers whose sets of experts differ. # (num_tokens,)
    """

    change: NDArray[np.float64]
    num_layers: NDArray[np.int64]
    num_changed: NDArray[np.int64]

    @classmethod
    def empty(cls, num_tokens: int) -> WindowChanges:
        """Return the changes before any layer is added."""
        none = np.zeros(num_tokens, dtype=np.int64)
        return cls(np.zeros(num_tokens), none, none.copy())


class TokenIdSums:
    """Sums of the change by token id, over prompts that are read a window at a time."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, dtype=np.int64)
        # As `sum_prompts` makes them of changes over decisions, then the number of tokens.
        self._sums = np.zeros((0, 7))
        self._pieces: dict[int, str] = {}

    def add(self, window: PairedWindow, changes: WindowChanges) -> None:
        """Add a window's tokens; nothing without token ids."""
        token_id = _find_ids(window)
        if token_id is None:
            return
        known = np.flatnonzero(changes.num_layers > 0)
        self._pieces.update(_find_pieces(window))
        ids, code = np.unique(token_id[known], return_inverse=True)
        prompts, prompt = np.unique(window.first.prompt[known], return_inverse=True)
        cells, cell = np.unique(code * len(prompts) + prompt, return_inverse=True)
        x = np.bincount(cell, weights=changes.change[known])
        n = np.bincount(cell, weights=changes.num_layers[known])
        by_prompt = [sum_prompts(x[:, None], n[:, None]), np.bincount(cell)[:, None]]
        sums = np.zeros((len(ids), 7))
        np.add.at(sums, cells // max(1, len(prompts)), np.concatenate(by_prompt, axis=1))
        merged, place = np.unique(np.concatenate([self._ids, ids]), return_inverse=True)
        total = np.zeros((len(merged), 7))
        total[place[: len(self._ids)]] = self._sums
        total[place[len(self._ids) :]] += sums
        self._ids, self._sums = merged, total

    def count_frequent(self, *, min_count: int) -> int:
        """Return the number of token ids that occur at least so often."""
        return int((self._sums[:, -1] >= min_count).sum())

    def find_most_changed(self, *, min_count: int, num_listed: int) -> tuple[TokenIdChange, ...]:
        """Return the ids that changed most, among those that changed and occur often enough."""
        frequent = np.flatnonzero((self._sums[:, -1] >= min_count) & (self._sums[:, 0] > 0))
        number, mean = self._sums[:, -1], self._sums[:, 0] / self._sums[:, 1]
        order = frequent[np.lexsort((-number[frequent], -mean[frequent]))][:num_listed]
        return tuple(
            TokenIdChange(
                token_id=int(self._ids[index]),
                token=self._pieces.get(int(self._ids[index])),
                count=int(number[index]),
                change=float(mean[index]),
                change_low=ratio.low,
                change_high=ratio.high,
            )
            for index, ratio in zip(order, find_ratios(self._sums[order, :-1]), strict=True)
        )


class MostChanged:
    """The single tokens that changed most, of windows that are added one by one."""

    def __init__(self, num_listed: int, *, prompts: Sequence[str], stacks: Sequence[str]) -> None:
        self._num_listed = num_listed
        self._prompts, self._stacks = prompts, stacks
        self._found: list[TokenChange] = []

    def add(self, window: PairedWindow, changes: WindowChanges) -> None:
        """Add a window's tokens. Of equal changes, the earlier one is listed."""
        mean = changes.change / np.maximum(changes.num_layers, 1)
        least = self._found[-1].change if len(self._found) == self._num_listed else 0.0
        candidates = np.flatnonzero(mean > least)
        order = np.lexsort((candidates, -changes.num_changed[candidates], -mean[candidates]))
        pieces = _find_pieces(window) if len(order) else {}
        for token in candidates[order[: self._num_listed]]:
            self._found.append(self._describe(window, changes, int(token), pieces))
        # A stable sort keeps earlier windows first.
        self._found.sort(key=lambda token: (-token.change, -token.num_changed_layers))
        del self._found[self._num_listed :]

    def list_tokens(self) -> tuple[TokenChange, ...]:
        """Return the tokens that changed most, the most changed first."""
        return tuple(self._found)

    def _describe(
        self, window: PairedWindow, changes: WindowChanges, token: int, pieces: Mapping[int, str]
    ) -> TokenChange:
        ids, prompt, stack = _find_ids(window), window.first.prompt, window.stack
        first, last = max(0, token - _CONTEXT), min(token + _CONTEXT + 1, len(prompt))
        words: dict[int, str | None] = {}
        if ids is not None and pieces:
            words = {
                index: pieces.get(int(ids[index]))
                for index in range(first, last)
                if prompt[index] == prompt[token] and stack[index] == stack[token]
            }
        return TokenChange(
            prompt_id=self._prompts[prompt[token]],
            position=int(window.first.position[token]),
            stack=self._stacks[stack[token]],
            token_id=None if ids is None else int(ids[token]),
            token=words.get(token),
            change=float(changes.change[token] / changes.num_layers[token]),
            num_changed_layers=int(changes.num_changed[token]),
            num_layers=int(changes.num_layers[token]),
            before=tuple(word for index, word in words.items() if index < token),
            after=tuple(word for index, word in words.items() if index > token),
        )


def _find_ids(window: PairedWindow) -> NDArray[np.int64] | None:
    first = window.first.token_id
    return window.second.token_id if first is None else first


def _find_pieces(window: PairedWindow) -> dict[int, str]:
    return {**window.second.pieces, **window.first.pieces}
