"""Threads that turn windows into rows and write them while the model goes on reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Semaphore
from types import TracebackType
from typing import Self

import pyarrow as pa

from moetool.errors import MoetoolError
from moetool.process.cores import count_cores
from moetool.trace.excerpt import PromptExcerpt, choose_excerpt_tokens, excerpt_rows
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.pieces import EncodedPiece, PieceFacts, TracePiece
from moetool.trace.writing.unfinished.finished import FinishedWindow
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.assembly.window_run import WindowDecisions, WindowRun
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.batches import WindowPrompts
from moetool.tracing.running.texts import TextFile, read_text
from moetool.tracing.timing import Stage, StageClock
from moetool.tracing.windows.collect import cut_scopes
from moetool.tracing.windows.window import RowMaker

# Threads beyond these would wait for the disk.
_MOST_THREADS = 8
# More of them would keep Python from the model, which starts each of its operations in Python.
_MOST_NEXT_TO_MODEL = 4
# Windows whose rows are still being made while the model reads another: host memory holds them all.
_MOST_WINDOWS = 3


@dataclass(frozen=True)
class DonePiece:
    """A piece whose rows were made.

    Attributes:
        facts: Of its prompts.
        num_rows: Its assignments.
        counter: Has counted them.
        lines: The generated texts of its prompts, if the run keeps them.
        excerpts: Of those of its prompts that are to be shown.
        encoded: The piece in the sink's form; None if it was there already.
    """

    facts: PieceFacts
    num_rows: int
    counter: DomainCounter
    lines: bytes
    excerpts: tuple[PromptExcerpt, ...]
    encoded: EncodedPiece | None = None


class RunTotals:
    """Sums over the pieces of a run.

    Attributes:
        facts: Of all prompts so far; None before the first.
        num_rows: Assignments.
        counter: Has counted them.
        excerpts: Of the first prompts.
    """

    def __init__(self) -> None:
        self.facts: PieceFacts | None = None
        self.num_rows = 0
        self.counter = DomainCounter()
        self.excerpts: list[PromptExcerpt] = []

    def add(self, piece: DonePiece) -> None:
        """Add a piece."""
        self._add_facts(piece.facts)
        self.num_rows += piece.num_rows
        self.counter.add_counter(piece.counter)
        self.excerpts += piece.excerpts

    def add_totals(self, other: RunTotals) -> None:
        """Add the sums over other pieces."""
        if other.facts is not None:
            self._add_facts(other.facts)
        self.num_rows += other.num_rows
        self.counter.add_counter(other.counter)
        self.excerpts += other.excerpts

    def _add_facts(self, facts: PieceFacts) -> None:
        self.facts = facts if self.facts is None else self.facts + facts


class RowThreads:
    """Makes the rows of windows, and hands them to the sink in the order of the windows.

    A context manager: on leaving, everything is made and handed over, also what came before an
    error elsewhere.

    Args:
        sink: Takes the pieces.
        maker: Makes the rows.
        texts: Takes the generated texts.
        clock: Measures the stages.
        num_excerpts: Number of prompts, from the first, of which excerpts are made.

    Attributes:
        totals: Sums over the pieces that were handed over.
    """

    def __init__(
        self,
        sink: TraceSink,
        maker: RowMaker,
        *,
        texts: TextFile | None,
        clock: StageClock,
        num_excerpts: int,
    ) -> None:
        self.totals = RunTotals()
        self._sink, self._maker, self._texts, self._clock = sink, maker, texts, clock
        self._num_excerpts = num_excerpts
        self._num_threads = min(_MOST_THREADS, count_cores())
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="moetool-rows")
        # One core is left to the model.
        self._turns = Semaphore(min(_MOST_NEXT_TO_MODEL, max(1, self._num_threads - 1)))
        self._windows: deque[Future[list[Future[DonePiece]]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The model has ended.
        self._turns.release(self._num_threads)
        try:
            if error is None:
                self._hand_over(at_most=0)
            else:
                # The rows of earlier windows are worth keeping, and the error matters more than theirs.
                with suppress(MoetoolError, OSError):
                    self._hand_over(at_most=0)
        finally:
            self._windows.clear()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def make(self, run: WindowRun) -> None:
        """Make the rows of a window all of whose batches ran; waits if several are in the making.

        Raises:
            MoetoolError: The rows of an earlier window can't be made or written.
        """
        self._submit(lambda: self._start_pieces(run))

    def take(self, window: WindowPrompts, finished: FinishedWindow) -> None:
        """Take a window whose rows an earlier run has written.

        Raises:
            MoetoolError: The rows of an earlier window can't be made or written.
        """
        self._submit(lambda: [self._pool.submit(self._read_finished, window, finished)])

    def _submit(self, start: Callable[[], list[Future[DonePiece]]]) -> None:
        self._hand_over(at_most=_MOST_WINDOWS - 1)
        self._windows.append(self._pool.submit(start))

    def _hand_over(self, *, at_most: int) -> None:
        """Hand windows to the sink: those that are ready, and more until at most this many are left."""
        while self._windows and (len(self._windows) > at_most or _is_ready(self._windows[0])):
            pieces = self._windows[0].result()
            while pieces:
                piece = pieces[0].result()
                # Before it is handed over: after an error, nothing is handed over twice.
                del pieces[0]
                if piece.encoded is not None:
                    with self._clock.measure(Stage.WRITE):
                        self._sink.commit(piece.encoded)
                if self._texts is not None:
                    self._texts.write_lines(piece.lines)
                self.totals.add(piece)
            self._windows.popleft()

    def _start_pieces(self, run: WindowRun) -> list[Future[DonePiece]]:
        with self._clock.measure(Stage.COPY):
            decisions = run.collect()
        return [
            self._pool.submit(self._make_in_turn, decisions, index)
            for index in range(len(decisions.pieces))
        ]

    def _make_in_turn(self, decisions: WindowDecisions, index: int) -> DonePiece:
        with self._turns:
            return self._make_piece(decisions, index)

    def _make_piece(self, decisions: WindowDecisions, index: int) -> DonePiece:
        prompts = decisions.pieces[index]
        window = decisions.window
        own = window.prompts[prompts.start : prompts.stop]
        with self._clock.measure(Stage.BUILD):
            if decisions.joined is not None:
                rows, probabilities = decisions.joined.rows, decisions.joined.probabilities
            else:
                scopes = cut_scopes(decisions.scopes, prompts)
                rows, probabilities = self._maker.make_rows(own, scopes)
            counter = DomainCounter()
            counter.add(rows)
        is_last = index == len(decisions.pieces) - 1
        lines = None
        if decisions.texts is not None:
            lines = b"".join(decisions.texts[prompts.start : prompts.stop])
        piece = TracePiece(
            window=window.index,
            piece=index,
            num_pieces=len(decisions.pieces),
            facts=decisions.sums.describe(window.start, prompts),
            rows=rows,
            probabilities=probabilities,
            texts=lines,
            saliency=decisions.saliency if is_last else None,
        )
        with self._clock.measure(Stage.WRITE):
            encoded = self._sink.encode(piece)
        return DonePiece(
            facts=piece.facts,
            num_rows=rows.num_rows,
            counter=counter,
            lines=lines or b"",
            excerpts=self._make_excerpts(own, piece.facts.first_prompt, rows, lines or b""),
            encoded=encoded,
        )

    def _read_finished(self, window: WindowPrompts, finished: FinishedWindow) -> DonePiece:
        counter = DomainCounter()
        shown: list[pa.Table] = []
        for table in finished.iter_tables():
            counter.add(table)
            if window.start < self._num_excerpts:
                shown.append(table)
        lines = finished.read_texts()
        rows = pa.concat_tables(shown).unify_dictionaries() if shown else None
        return DonePiece(
            facts=finished.facts,
            num_rows=finished.num_rows,
            counter=counter,
            lines=lines,
            excerpts=self._make_excerpts(window.prompts, window.start, rows, lines),
        )

    def _make_excerpts(
        self, prompts: Sequence[TokenizedPrompt], start: int, rows: pa.Table | None, lines: bytes
    ) -> tuple[PromptExcerpt, ...]:
        """Return excerpts of the prompts that are to be shown.

        Args:
            prompts: Some consecutive ones.
            start: Index of the first of them in the run.
            rows: All of them; None if no prompt is to be shown.
            lines: Their generated texts, if any.
        """
        if rows is None:
            return ()
        written = lines.splitlines()
        return tuple(
            PromptExcerpt(
                prompt_id=item.prompt.prompt_id,
                domain=item.prompt.domain,
                prompt=item.prompt.text,
                written=read_text(written[index]) if written else None,
                stacks=excerpt_rows(
                    rows,
                    item.prompt.prompt_id,
                    most_tokens=choose_excerpt_tokens(self._num_excerpts),
                ),
            )
            for index, item in enumerate(prompts[: max(0, self._num_excerpts - start)])
        )


def _is_ready(window: Future[list[Future[DonePiece]]]) -> bool:
    return window.done() and (
        window.exception() is not None or all(made.done() for made in window.result())
    )
