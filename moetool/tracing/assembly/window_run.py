"""One window of prompts put through a model, except the batches that an earlier run kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.trace.writing.pieces import TraceBatch
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.recording.saliency.sums_file import (
    LayerSums,
    add_sums,
    pack_sums,
    unpack_sums,
)
from moetool.tracing.recording.transfer.inbox import Receipt
from moetool.tracing.running.batches import Batch, WindowPrompts
from moetool.tracing.running.generation import Continuation
from moetool.tracing.running.texts import decode_texts, encode_texts
from moetool.tracing.windows.collect import (
    CollectedScope,
    RoutedSequence,
    TracedBatch,
    collect_scopes,
    count_rows,
)
from moetool.tracing.windows.kept_batches import JoinedBatches, WindowSums, join_batches
from moetool.tracing.windows.window import RowMaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Made and written by one thread at a time; a row group of the file.
_ROWS_PER_PIECE = 1_000_000


@dataclass(frozen=True)
class RanBatch:
    """A batch that went through the model, and whose calls may still be on their way from a GPU.

    Attributes:
        prompts: Index of each row's prompt in the window. # (batch_size,)
        sequences: See `TracedBatch`.
        receipts: Of its calls, in the order in which they ran.
        written: The continuation of each row, if the model generates text.
        saliency: Sums of the experts' outputs over it, if they are kept.
    """

    prompts: NDArray[np.int32]
    sequences: Mapping[str, Sequence[RoutedSequence]]
    receipts: Sequence[Receipt]
    written: Sequence[Continuation] = ()
    saliency: LayerSums = field(default_factory=dict)

    def receive(self) -> TracedBatch:
        """Return the batch, for whose calls this waits."""
        calls = [call for receipt in self.receipts for call in receipt.result()]
        return TracedBatch(self.prompts, self.sequences, calls)


@dataclass(frozen=True)
class WindowDecisions:
    """The decisions of a window as rows, or ready to become rows.

    Attributes:
        window: Its prompts.
        sums: Numbers of each prompt.
        scopes: Its decisions; empty if they are rows already.
        joined: Its rows, where some of its batches were kept as rows.
        texts: The line of each prompt, if the run keeps generated texts.
        saliency: The packed sums of the experts' outputs, if the run keeps them.
        pieces: Consecutive prompts whose rows are written together.
    """

    window: WindowPrompts
    sums: WindowSums
    scopes: Sequence[CollectedScope]
    joined: JoinedBatches | None
    texts: Sequence[bytes] | None
    saliency: bytes | None
    pieces: Sequence[range]


class WindowRun:
    """Runs the batches of one window, and collects what they decided.

    Whenever the sink's last part is long ago, the batches that have ended are kept there. A later
    run of the same window takes them from there, and its rows are the same.

    Args:
        window: Its prompts.
        sink: Takes the batches, and has those that an interrupted run kept.
        maker: Makes the rows.
        tokenizer: Spells the texts.
        with_texts: Keep generated texts.
        with_saliency: Keep sums of the experts' outputs.
        layers: The recorded ones.
        describe: Called once rows are about to be made.

    Attributes:
        agreed: Raises an error if processes that share the model have recorded other decisions;
            None if none do.
    """

    def __init__(
        self,
        window: WindowPrompts,
        *,
        sink: TraceSink,
        maker: RowMaker,
        tokenizer: PreTrainedTokenizerBase,
        with_texts: bool,
        with_saliency: bool,
        layers: Sequence[MoeLayer],
        describe: Callable[[], None],
    ) -> None:
        self._window = window
        self._sink, self._maker, self._tokenizer = sink, maker, tokenizer
        self._with_texts, self._with_saliency = with_texts, with_saliency
        self._layers, self._describe = layers, describe
        self.agreed: Future[None] | None = None
        self._sums = WindowSums.empty(len(window.prompts))
        self._ran: dict[int, RanBatch] = {}
        self._kept = sink.kept_batches(window.index)
        for batch in self._kept.values():
            self._sums.add_batch(batch.facts)

    @property
    def kept_token_ids(self) -> list[NDArray[np.int32]]:
        """The tokens of the prompts that an earlier run kept."""
        kept = [prompt for batch in self._kept.values() for prompt in batch.facts.prompts]
        return [self._window.prompts[prompt].token_ids for prompt in kept]

    def run(
        self,
        batches: Iterable[Batch],
        run_batch: Callable[[int, Batch], RanBatch],
    ) -> None:
        """Run the batches that were not kept.

        Args:
            batches: All of the window.
            run_batch: Puts one through the model, given its index in the window.
        """
        for index, batch in enumerate(batches):
            if index not in self._kept:
                self._ran[index] = run_batch(index, batch)
                self._keep()

    def collect(self) -> WindowDecisions:
        """Return the decisions of the window, once all its batches have run; from any thread.

        Raises:
            UntraceableError: A call can't be recorded exactly.
        """
        if self.agreed is not None:
            self.agreed.result()
        return self._join() if self._kept else self._collect()

    def _keep(self) -> None:
        if self._sink.is_overdue:
            for index in self._ran:
                if index not in self._kept:
                    self._kept[index] = self._make_batch(index)
                    self._sink.keep_batch(self._kept[index])

    def _make_batch(self, index: int) -> TraceBatch:
        """Return a batch that has run as rows."""
        ran = self._ran[index]
        scopes = self._take_scopes([ran])
        rows, probabilities = self._maker.make_rows(self._window.prompts, scopes)
        texts = self._spell(self._add_written([ran]))
        return TraceBatch(
            window=self._window.index,
            batch=index,
            facts=self._sums.describe_batch(ran.prompts.tolist()),
            rows=rows,
            probabilities=probabilities,
            texts=None if texts is None else b"".join(texts),
            saliency=pack_sums(ran.saliency) if self._with_saliency else None,
        )

    def _take_scopes(self, ran: Sequence[RanBatch]) -> list[CollectedScope]:
        """Return the decisions of batches, after everyone who needs to has seen them."""
        scopes = collect_scopes([each.receive() for each in ran])
        self._maker.note_layers(scopes)
        self._sums.add_scopes(scopes)
        self._describe()
        return scopes

    def _collect(self) -> WindowDecisions:
        """Return the decisions of a window of which no batch was kept."""
        ran = list(self._ran.values())
        scopes = self._take_scopes(ran)
        num_rows = count_rows(scopes, num_prompts=len(self._window.prompts))
        return WindowDecisions(
            window=self._window,
            sums=self._sums,
            scopes=scopes,
            joined=None,
            texts=self._spell(self._add_written(ran)),
            saliency=self._pack([each.saliency for each in ran]),
            pieces=_divide(num_rows),
        )

    def _join(self) -> WindowDecisions:
        """Return the rows of a window of which some batches were kept."""
        for index in self._ran:
            if index not in self._kept:
                self._kept[index] = self._make_batch(index)
        joined = join_batches(
            [self._kept[index] for index in sorted(self._kept)],
            [item.prompt.prompt_id for item in self._window.prompts],
        )
        return WindowDecisions(
            window=self._window,
            sums=self._sums,
            scopes=(),
            joined=joined,
            texts=joined.texts,
            saliency=self._pack([unpack_sums(each, self._layers) for each in joined.saliency]),
            pieces=[range(len(self._window.prompts))],
        )

    def _pack(self, batches: Sequence[LayerSums]) -> bytes | None:
        """Return the sums over batches, in their order."""
        return pack_sums(add_sums(batches)) if self._with_saliency else None

    def _add_written(self, ran: Iterable[RanBatch]) -> dict[int, Continuation]:
        """Count new tokens, and return the continuations by prompt."""
        written = {
            prompt: continuation
            for each in ran
            for prompt, continuation in zip(each.prompts.tolist(), each.written, strict=False)
        }
        for prompt, continuation in written.items():
            self._sums.num_new_tokens[prompt] = len(continuation.token_ids)
        return dict(sorted(written.items()))

    def _spell(self, written: dict[int, Continuation]) -> list[bytes] | None:
        if not self._with_texts:
            return None
        prompts = [self._window.prompts[prompt] for prompt in written]
        texts = decode_texts(prompts, list(written.values()), self._tokenizer)
        return [encode_texts([text]) for text in texts]


def _divide(num_rows: NDArray[np.int64]) -> list[range]:
    """Return runs of consecutive prompts with about `_ROWS_PER_PIECE` rows each.

    Args:
        num_rows: Of each prompt. # (num_prompts,)
    """
    before = np.cumsum(num_rows) - num_rows
    _, starts = np.unique(before // _ROWS_PER_PIECE, return_index=True)
    stops = [*starts[1:].tolist(), len(num_rows)]
    return [range(start, stop) for start, stop in zip(starts.tolist(), stops, strict=True)]
