"""One window of prompts put through a model, except the batches that an earlier run kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.trace.writing.pieces import TraceBatch, TracePiece
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.recording.saliency.sums_file import (
    LayerSums,
    add_sums,
    pack_sums,
    unpack_sums,
)
from moetool.tracing.running.batches import Batch, plan_windows
from moetool.tracing.running.generation import Continuation
from moetool.tracing.running.texts import decode_texts, encode_texts
from moetool.tracing.windows.collect import TracedBatch, collect_scopes
from moetool.tracing.windows.kept_batches import WindowSums, join_batches
from moetool.tracing.windows.window import RowMaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WindowPrompts:
    """The prompts of a window.

    Attributes:
        index: Of the window in the run.
        start: Index of its first prompt in the run.
        prompts: At least one.
    """

    index: int
    start: int
    prompts: Sequence[TokenizedPrompt]


@dataclass(frozen=True)
class RanBatch:
    """A batch that went through the model.

    Attributes:
        traced: Its tokens and recorded calls.
        written: The continuation of each row, if the model generates text.
        saliency: Sums of the experts' outputs over it, if they are kept.
    """

    traced: TracedBatch
    written: Sequence[Continuation] = ()
    saliency: LayerSums = field(default_factory=dict)


def list_windows(prompts: Sequence[TokenizedPrompt], options: TraceOptions) -> list[WindowPrompts]:
    """Return the windows of a run, see `plan_windows`."""
    planned = plan_windows(
        prompts,
        batch_size=options.batch_size,
        max_batch_tokens=options.max_batch_tokens,
        num_new_tokens=options.max_new_tokens,
    )
    return [
        WindowPrompts(each.index, each.start, prompts[each.start : each.stop]) for each in planned
    ]


class WindowRun:
    """Runs the batches of one window, and turns them into rows.

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
        describe: Called before batches are kept, once their rows were made.
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
        self._sums = WindowSums.empty(len(window.prompts))
        self._ran: dict[int, RanBatch] = {}
        self._kept = sink.kept_batches(window.index)
        for batch in self._kept.values():
            self._sums.add_batch(batch.facts)
            maker.add_batch(batch)

    @property
    def kept_token_ids(self) -> list[NDArray[np.int32]]:
        """The tokens of the prompts that an earlier run kept."""
        kept = [prompt for batch in self._kept.values() for prompt in batch.facts.prompts]
        return [self._window.prompts[prompt].token_ids for prompt in kept]

    def run(self, batches: Iterable[Batch], run_batch: Callable[[int, Batch], RanBatch]) -> None:
        """Run the batches that were not kept.

        Args:
            batches: All of the window.
            run_batch: Puts one through the model, given its index in the window.
        """
        for index, batch in enumerate(batches):
            if index not in self._kept:
                self._ran[index] = run_batch(index, batch)
                self._keep()

    def make_piece(self) -> TracePiece:
        """Return the whole window, all of whose batches have run, as one piece."""
        return self._join() if self._kept else self._make()

    def _keep(self) -> None:
        if self._sink.is_overdue:
            for index in self._ran:
                if index not in self._kept:
                    self._kept[index] = self._make_batch(index)
                    self._describe()
                    self._sink.keep_batch(self._kept[index])

    def _make_batch(self, index: int) -> TraceBatch:
        """Return a batch that has run as rows."""
        ran = self._ran[index]
        scopes = collect_scopes([ran.traced])
        rows, probabilities = self._maker.make_rows(self._window.prompts, scopes)
        self._sums.add_scopes(scopes)
        written = self._add_written([ran])
        texts = self._spell(written)
        return TraceBatch(
            window=self._window.index,
            batch=index,
            facts=self._sums.describe_batch(ran.traced.prompts.tolist()),
            rows=rows,
            probabilities=probabilities,
            texts=None if texts is None else b"".join(texts),
            saliency=pack_sums(ran.saliency) if self._with_saliency else None,
        )

    def _make(self) -> TracePiece:
        """Return the rows of a window of which no batch was kept."""
        ran = list(self._ran.values())
        scopes = collect_scopes([each.traced for each in ran])
        rows, probabilities = self._maker.make_rows(self._window.prompts, scopes)
        self._sums.add_scopes(scopes)
        texts = self._spell(self._add_written(ran))
        saliency = self._pack([each.saliency for each in ran])
        return self._as_piece(rows, probabilities, texts, saliency)

    def _join(self) -> TracePiece:
        """Return the rows of a window of which some batches were kept."""
        for index in self._ran:
            if index not in self._kept:
                self._kept[index] = self._make_batch(index)
        joined = join_batches(
            [self._kept[index] for index in sorted(self._kept)],
            [item.prompt.prompt_id for item in self._window.prompts],
        )
        saliency = [unpack_sums(each, self._layers) for each in joined.saliency]
        return self._as_piece(joined.rows, joined.probabilities, joined.texts, self._pack(saliency))

    def _as_piece(
        self,
        rows: pa.Table,
        probabilities: pa.Table | None,
        texts: Sequence[bytes] | None,
        saliency: bytes | None,
    ) -> TracePiece:
        return TracePiece(
            window=self._window.index,
            piece=0,
            num_pieces=1,
            facts=self._sums.describe(self._window.start, range(len(self._window.prompts))),
            rows=rows,
            probabilities=probabilities,
            texts=None if texts is None else b"".join(texts),
            saliency=saliency,
        )

    def _pack(self, batches: Sequence[LayerSums]) -> bytes | None:
        """Return the sums over batches, in their order."""
        return pack_sums(add_sums(batches)) if self._with_saliency else None

    def _add_written(self, ran: Iterable[RanBatch]) -> dict[int, Continuation]:
        """Count new tokens, and return the continuations by prompt."""
        written = {
            prompt: continuation
            for each in ran
            for prompt, continuation in zip(
                each.traced.prompts.tolist(), each.written, strict=False
            )
        }
        for prompt, continuation in written.items():
            self._sums.num_new_tokens[prompt] = len(continuation.token_ids)
            self._maker.num_new_tokens += len(continuation.token_ids)
        return dict(sorted(written.items()))

    def _spell(self, written: dict[int, Continuation]) -> list[bytes] | None:
        if not self._with_texts:
            return None
        prompts = [self._window.prompts[prompt] for prompt in written]
        texts = decode_texts(prompts, list(written.values()), self._tokenizer)
        return [encode_texts([text]) for text in texts]
