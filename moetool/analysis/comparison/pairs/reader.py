"""The tokens that two traces share, read from both at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.comparison.pairs.cutting import (
    find_stacks,
    join_windows,
    keep_layers,
    take_tokens,
)
from moetool.analysis.comparison.pairs.tokens import TokenList, match_tokens, refuse_prompt
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow

# Rows of prompts that one of the traces has given and the other has not, held at a time.
_ROWS_AT_ONCE = 4_000_000
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class PairedWindow:
    """The same tokens, in the same order, with the decisions of each trace.

    Attributes:
        first: With prompts and groups of the first trace's reader.
        second: With prompts of the first reader, too, and groups of the second.
        stack: The number of each token's stack. # (num_tokens,)
    """

    first: DecisionWindow
    second: DecisionWindow
    stack: NDArray[np.int64]


class PairReader:
    """Reads two traces of the same tokens together, some whole prompts at a time.

    The traces may have their prompts in any order. Where the orders differ so much that too many
    rows would have to be held, both are read in several passes.

    Attributes:
        num_left_out: Tokens of each trace that the other lacks; complete after the last window.

    Args:
        first: Reader of one trace.
        second: Reader of the other.
        places: The layers to read; both have them.
        is_common: Leave out tokens that only one of the traces has, and those after the first
            token that differs, instead of refusing them.

    Raises:
        InputError: The traces have different prompts.
    """

    def __init__(
        self,
        first: DecisionReader,
        second: DecisionReader,
        places: Sequence[Place],
        *,
        is_common: bool,
    ) -> None:
        self._readers = (first, second)
        self._places = frozenset(places)
        self._stacks = {name: code for code, name in enumerate(sorted({s for s, _ in places}))}
        self._is_common = is_common
        self.num_left_out = [0, 0]
        index_of = {name: index for index, name in enumerate(first.prompts)}
        # The number that the first reader gives to each of the second's prompts; -1 for none.
        self._number = np.array([index_of.get(name, -1) for name in second.prompts], dtype=np.int64)
        self._in_both = np.zeros(len(first.prompts), dtype=bool)
        self._in_both[self._number[self._number >= 0]] = True
        if not is_common:
            if not self._in_both.all():
                name = first.prompts[int(np.argmin(self._in_both))]
                refuse_prompt(name, has=first.path, lacks=second.path)
            if (self._number < 0).any():
                name = second.prompts[int(np.argmax(self._number < 0))]
                refuse_prompt(name, has=second.path, lacks=first.path)
        self._set_passes()

    def __iter__(self) -> Iterator[PairedWindow]:
        """Yield the tokens that both traces have.

        Raises:
            InputError: The tokens differ, or a row is not one of a trace.
        """
        self.num_left_out = [0, 0]
        streams = [iter(reader) for reader in self._readers]
        held: list[list[DecisionWindow]] = [[], []]
        # Prompts that each reader has given. # (2, num_prompts)
        is_read = np.zeros((2, len(self._in_both)), dtype=bool)
        is_done = ~self._in_both
        is_over = [False, False]
        while not all(is_over):
            counts = [sum(len(window.prompt) for window in windows) for windows in held]
            side = int(counts[1] < counts[0])
            side = 1 - side if is_over[side] else side
            window = next(streams[side], None)
            if window is None:
                is_over[side] = True
                continue
            window = self._take(window, side)
            if len(window.prompt):
                is_read[side, window.prompt] = True
                held[side].append(window)
            ready = is_read.all(axis=0) & ~is_done
            if ready.any():
                is_done |= ready
                yield from self._match(held, ready)
        # Prompts without a decision in the common layers of one of the traces.
        yield from self._match(held, ~is_done)

    def _take(self, window: DecisionWindow, side: int) -> DecisionWindow:
        """Return the tokens of prompts that both traces have, with the first reader's numbers."""
        window = keep_layers(window, self._places)
        number = window.prompt if side == 0 else self._number[window.prompt]
        kept = number >= 0
        kept[kept] = self._in_both[number[kept]]
        self.num_left_out[side] += int((~kept).sum())
        window = replace(window, prompt=number)
        return window if kept.all() else take_tokens(window, np.flatnonzero(kept))

    def _match(
        self, held: list[list[DecisionWindow]], ready: NDArray[np.bool_]
    ) -> Iterator[PairedWindow]:
        """Take the tokens of prompts that are ready out of what is held, and yield them."""
        parts = []
        for side in (0, 1):
            is_ready = [ready[window.prompt] for window in held[side]]
            taken = [
                take_tokens(window, np.flatnonzero(mask))
                for window, mask in zip(held[side], is_ready, strict=True)
            ]
            rest = [
                take_tokens(window, np.flatnonzero(~mask))
                for window, mask in zip(held[side], is_ready, strict=True)
                if not mask.all()
            ]
            held[side] = rest
            parts.append(self._sort(join_windows(taken)) if taken else None)
        known = next((part for part in parts if part is not None), None)
        if known is None:
            return
        # All tokens of one trace are without a counterpart if the other has none.
        first, second = (take_tokens(known, _NONE) if part is None else part for part in parts)
        matched = match_tokens(
            self._describe(first, 0), self._describe(second, 1), is_common=self._is_common
        )
        for side, number in enumerate(matched.num_left_out):
            self.num_left_out[side] += number
        if len(matched.first):
            first = take_tokens(first, matched.first)
            second = take_tokens(second, matched.second)
            yield PairedWindow(first, second, find_stacks(first, self._stacks))

    def _sort(self, window: DecisionWindow) -> DecisionWindow:
        stack = find_stacks(window, self._stacks)
        return take_tokens(window, np.lexsort((window.position, window.prompt, stack)))

    def _describe(self, window: DecisionWindow, side: int) -> TokenList:
        return TokenList(
            path=self._readers[side].path,
            prompts=self._readers[0].prompts,
            stacks=tuple(self._stacks),
            stack=find_stacks(window, self._stacks),
            prompt=window.prompt,
            position=window.position,
            token_id=window.token_id,
        )

    def _set_passes(self) -> None:
        """Have both readers read the same prompts in each pass, if too many rows would be held."""
        first, second = self._readers
        rows = first.num_rows.copy()  # (num_prompts,) of both traces
        known = self._number >= 0
        rows[self._number[known]] += second.num_rows[known]
        rows[~self._in_both] = 0
        if _count_most_held(rows, self._number[known]) <= _ROWS_AT_ONCE + int(rows.max()):
            return
        num_passes = -(-int(rows.sum()) // _ROWS_AT_ONCE)
        pass_of = (np.cumsum(rows) - rows) * num_passes // max(1, int(rows.sum()))
        first.set_passes(pass_of)
        # Prompts that the first trace lacks are left out in any pass.
        second.set_passes(np.where(known, pass_of[self._number], 0))


def _count_most_held(rows: NDArray[np.int64], order: NDArray[np.int64]) -> int:
    """Return the most rows that are held if both traces are read prompt by prompt in step.

    Args:
        rows: Of each prompt in the order of the first trace. # (num_prompts,)
        order: The prompts that both have, in the order of the second. # (num_common,)
    """
    common = np.sort(order)
    place = np.empty(len(rows), dtype=np.int64)
    place[common] = np.arange(len(common))
    # Step in which the second trace gives the i-th prompt of the first.
    step = np.empty(len(common), dtype=np.int64)
    step[place[order]] = np.arange(len(order))
    begin, end = np.minimum(step, np.arange(len(common))), np.maximum(step, np.arange(len(common)))
    change = np.zeros(len(common) + 1, dtype=np.int64)
    np.add.at(change, begin, rows[common])
    np.subtract.at(change, end, rows[common])
    return int(np.cumsum(change).max(initial=0))
