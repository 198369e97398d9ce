"""Pieces made by several threads reach the sink in order, once, and after errors elsewhere too."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from moetool.errors import OutOfMemoryError, UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import KeptTrace
from moetool.trace.writing.pieces import EncodedPiece, TracePiece
from moetool.tracing.assembly.row_threads import RowThreads
from moetool.tracing.assembly.window_run import WindowDecisions, WindowRun
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.batches import WindowPrompts
from moetool.tracing.timing import StageClock
from moetool.tracing.windows.kept_batches import WindowSums
from moetool.tracing.windows.window import RowMaker
from tests.trace.examples import make_rows

NUM_PROMPTS = 3


class Sink(KeptTrace):
    """Takes its time to encode, and may fail on one piece."""

    def __init__(self, fails_on: tuple[int, int] | None = None) -> None:
        super().__init__(TraceMetadata())
        self.fails_on = fails_on
        self.committed: list[tuple[int, int]] = []

    def encode(self, piece: TracePiece) -> EncodedPiece:
        time.sleep(random.Random(f"{piece.window} {piece.piece}").random() / 50)
        if (piece.window, piece.piece) == self.fails_on:
            raise UsageError("The disk is full.", hint="Make room.")
        return super().encode(piece)

    def commit(self, encoded: EncodedPiece) -> None:
        self.committed.append((encoded.window, encoded.piece))
        super().commit(encoded)


class Maker:
    """Makes rows of three tokens for each prompt."""

    def make_rows(
        self, window: Sequence[TokenizedPrompt], _scopes: object
    ) -> tuple[pa.Table, pa.Table | None]:
        ids = [each.prompt.prompt_id for each in window]
        return make_rows((3,) * len(ids), prompt_ids=ids, domains=["d"] * len(ids)), None


class Run:
    """A window whose batches have run, of one piece for each prompt."""

    def __init__(self, index: int) -> None:
        self.index = index

    def collect(self) -> WindowDecisions:
        start = self.index * NUM_PROMPTS
        return WindowDecisions(
            window=WindowPrompts(self.index, start, [tokenize(start + n) for n in range(3)]),
            sums=WindowSums.empty(NUM_PROMPTS),
            scopes=(),
            joined=None,
            texts=None,
            saliency=None,
            pieces=[range(number, number + 1) for number in range(NUM_PROMPTS)],
        )


def tokenize(number: int) -> TokenizedPrompt:
    prompt = Prompt(prompt_id=f"p{number}", domain="d", text="text", origin="prompts:1")
    return TokenizedPrompt(prompt, np.array([5], dtype=np.int32), was_cut=False)


def start_threads(sink: Sink) -> RowThreads:
    return RowThreads(
        sink, cast("RowMaker", Maker()), texts=None, clock=StageClock(), num_excerpts=0
    )


def make_windows(threads: RowThreads, number: int) -> None:
    make_all(threads, [Run(index) for index in range(number)])


def make_all(threads: RowThreads, runs: Sequence[Run], error: Exception | None = None) -> None:
    """Make windows, and raise an error if one is given."""
    with threads:
        for run in runs:
            threads.make(cast("WindowRun", run))
        if error is not None:
            raise error


def list_pieces(number: int) -> list[tuple[int, int]]:
    return [(window, piece) for window in range(number) for piece in range(NUM_PROMPTS)]


def test_pieces_come_in_order_whichever_thread_is_first() -> None:
    sink = Sink()
    threads = start_threads(sink)
    make_windows(threads, 6)
    assert sink.committed == list_pieces(6)
    totals = threads.totals
    assert totals.facts is not None
    assert (totals.facts.num_prompts, totals.num_rows) == (18, sum(t.num_rows for t in sink.tables))


def test_what_was_made_before_another_error_is_handed_over() -> None:
    sink = Sink()
    error = OutOfMemoryError("Out of memory.", hint="Give less.")
    with pytest.raises(OutOfMemoryError):
        make_all(start_threads(sink), [Run(0), Run(1)], error)
    assert sink.committed == list_pieces(2)


@pytest.mark.parametrize("fails_on", [(0, 0), (1, 2), (4, 1)])
def test_after_a_piece_that_fails_nothing_is_handed_over_or_twice(
    fails_on: tuple[int, int],
) -> None:
    sink = Sink(fails_on)
    with pytest.raises(UsageError, match="disk is full"):
        make_windows(start_threads(sink), 6)
    pieces = list_pieces(6)
    assert sink.committed == pieces[: pieces.index(fails_on)]


def test_an_error_of_a_window_ends_the_run() -> None:
    class Broken(Run):
        def collect(self) -> Any:
            raise UsageError("It can't be recorded.", hint="Leave it.")

    sink = Sink()
    with pytest.raises(UsageError, match="can't be recorded"):
        make_all(start_threads(sink), [Run(0), Broken(1), Run(2), Run(3)])
    assert sink.committed == list_pieces(1)
