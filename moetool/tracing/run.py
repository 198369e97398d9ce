"""Run a model over prompts and write its routing decisions to a sink, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.quiet import quiet_transformers
from moetool.trace.excerpt import PromptExcerpt, choose_excerpt_tokens, excerpt_rows
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.pieces import TracePiece
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.options import GenerationOptions, TraceOptions
from moetool.tracing.prompts.tokens import TokenizedPrompt, choose_pad, count_embeddings
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.recording.saliency.observer_file import pack_observer_data
from moetool.tracing.recording.saliency.sums_file import add_sums, take_sums, unpack_sums
from moetool.tracing.running.batches import Batch, make_batches
from moetool.tracing.running.generation import (
    Continuation,
    check_can_generate,
    choose_batch_seed,
    generation_settings,
    takes_left_pads,
)
from moetool.tracing.running.passes import check_can_read, read_batch, write_batch
from moetool.tracing.running.texts import TextFile, read_text
from moetool.tracing.running.window_run import RanBatch, WindowPrompts, WindowRun, list_windows
from moetool.tracing.timing import RunTimings, Stage, StageClock
from moetool.tracing.windows.collect import TracedBatch
from moetool.tracing.windows.routed_layers import describe_layers, note_routing
from moetool.tracing.windows.window import RowMaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TracedRun:
    """Figures of a finished run.

    Attributes:
        metadata: Metadata of the complete trace.
        counts: Assignments by domain, layer and expert.
        num_rows: Number of assignments recorded.
        timings: Where the time went.
        excerpts: The first prompts, as many as were asked for.
    """

    metadata: TraceMetadata
    counts: ExpertCounts
    num_rows: int
    timings: RunTimings
    excerpts: tuple[PromptExcerpt, ...] = ()


@quiet_transformers()
def trace_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    options: TraceOptions,
    *,
    sink: TraceSink,
    metadata: TraceMetadata,
    texts: TextFile | None = None,
    advance: Callable[[int], None] | None = None,
    num_excerpts: int = 0,
    clock: StageClock | None = None,
) -> TracedRun:
    """Run a loaded model over prompts, write every decision, and return the figures of the run.

    Rows come in the order of the prompts whatever the batch size. Memory holds one window of
    decisions at a time.

    Args:
        model: A model with routed experts, in evaluation mode.
        tokenizer: Spells the tokens and names the pad.
        prompts: At least one.
        options: Those about loading and tokenizing have no effect here.
        sink: Takes the rows.
        metadata: Facts about the model and the run; counts and layers are filled in.
        texts: Takes the continuations.
        advance: Called after each batch with the number of its tokens, `max_new_tokens` included.
        num_excerpts: Number of prompts, from the first, to return excerpts of.
        clock: Measures the whole run; None measures from here on.

    Raises:
        UntraceableError: A call can't be recorded exactly.
        OutOfMemoryError: A batch doesn't fit.
        UsageError: A layer number has no routed experts, or the model can't generate.
    """
    clock = clock or StageClock()
    generation = options.generation
    batch_size, max_batch_tokens = options.batch_size, options.max_batch_tokens
    recorder = RoutingRecorder(
        model,
        layers=options.layers,
        keep_scores=options.with_probabilities,
        allow_inexact=options.allow_inexact,
        keep_saliency=options.with_saliency,
    )
    recorded = recorder.recorded
    settings: AbstractContextManager[None]
    if generation is not None:
        check_can_generate(model)
        settings = generation_settings(model, tokenizer, generation)
    else:
        check_can_read(recorded)
        settings = nullcontext()
    pad_token_id = choose_pad(tokenizer, vocabulary=count_embeddings(model))

    maker = RowMaker(tokenizer, with_probabilities=options.with_probabilities)
    finished, known = sink.list_finished(), sink.known_metadata()

    def describe() -> TraceMetadata:
        layers = describe_layers(recorder, maker.top_k, known.layers)
        function = known.score_function or maker.score_function
        return replace(note_routing(metadata, layers), score_function=function)

    def run_batch(window: WindowPrompts, index: int, batch: Batch) -> RanBatch:
        token_ids = [window.prompts[prompt].token_ids for prompt in batch.prompts]
        written: Sequence[Continuation] = ()
        with clock.measure(Stage.FORWARD):
            if generation is None:
                sequences = read_batch(recorded, batch, token_ids=token_ids)
            else:
                seed = choose_batch_seed(generation, window=window.index, batch=index)
                sequences, written = write_batch(recorded, batch, token_ids=token_ids, seed=seed)
        with clock.measure(Stage.COPY):
            traced = TracedBatch(batch.prompts, sequences, recorder.take_calls())
        if advance is not None:
            advance(count_tokens(token_ids, generation))
        return RanBatch(traced, written, take_sums(recorder.saliency))

    def run_window(window: WindowPrompts, *, with_texts: bool) -> TracePiece:
        run = WindowRun(
            window,
            sink=sink,
            maker=maker,
            tokenizer=tokenizer,
            with_texts=with_texts,
            with_saliency=options.with_saliency,
            layers=recorder.layers,
            describe=lambda: sink.describe(describe()),
        )
        if advance is not None and run.kept_token_ids:
            advance(count_tokens(run.kept_token_ids, generation))
        batches = make_batches(
            window.prompts,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            num_new_tokens=options.max_new_tokens,
            pad_token_id=pad_token_id,
            pad_side="right" if generation is None or recorded.encoder else "left",
            without_pads=generation is not None and not takes_left_pads(model),
        )
        run.run(batches, partial(run_batch, window))
        with clock.measure(Stage.BUILD):
            return run.make_piece()

    def take_finished(window: WindowPrompts) -> tuple[list[pa.Table], bytes]:
        """Return the rows and texts of a window that an earlier run has written."""
        maker.add_finished(finished[window.index])
        if advance is not None:
            token_ids = [prompt.token_ids for prompt in window.prompts]
            advance(count_tokens(token_ids, generation))
        return list(finished[window.index].iter_tables()), finished[window.index].read_texts()

    counter = DomainCounter()
    excerpts: list[PromptExcerpt] = []
    windows = list_windows(prompts, options)
    # A recorder that sees no call raises an error.
    with settings, recorder if len(finished) < len(windows) else nullcontext():
        for window in windows:
            shown = window.prompts[: num_excerpts - len(excerpts)]
            if window.index in finished:
                tables, lines = take_finished(window)
            else:
                is_spelled = texts is not None or bool(shown and generation)
                piece = run_window(window, with_texts=is_spelled)
                sink.describe(describe())
                with clock.measure(Stage.WRITE):
                    sink.commit(sink.encode(piece))
                tables, lines = [piece.rows], piece.texts or b""
            for table in tables:
                counter.add(table)
            if texts is not None:
                texts.write_lines(lines)
            if shown:
                excerpts += _excerpt_prompts(
                    shown,
                    pa.concat_tables(tables).unify_dictionaries(),
                    written=[read_text(line) for line in lines.splitlines()[: len(shown)]],
                    most_tokens=choose_excerpt_tokens(num_excerpts),
                )
    complete = replace(
        describe(),
        complete=True,
        num_prompts=len(prompts),
        num_tokens=maker.num_tokens,
        num_new_tokens=maker.num_new_tokens,
        num_decisions=maker.num_decisions,
        num_cut_prompts=sum(prompt.was_cut for prompt in prompts),
    )
    saliency = join_saliency(sink, recorder.layers) if options.with_saliency else None
    with clock.measure(Stage.WRITE):
        sink.finish(complete, saliency)
    return TracedRun(
        metadata=complete,
        counts=counter.counts(complete.layers),
        num_rows=maker.num_rows,
        timings=clock.read(num_tokens=maker.num_tokens),
        excerpts=tuple(excerpts),
    )


def join_saliency(sink: TraceSink, layers: Sequence[MoeLayer]) -> bytes:
    """Return the file of the sums of all windows, added in their order."""
    sums = [window.read_saliency() for window in sink.list_finished().values()]
    return pack_observer_data(add_sums(unpack_sums(each, layers) for each in sums if each))


def _excerpt_prompts(
    prompts: Sequence[TokenizedPrompt],
    rows: pa.Table,
    *,
    written: Sequence[str],
    most_tokens: int,
) -> Iterator[PromptExcerpt]:
    """Yield excerpts of prompts whose rows are in a table; `written` is empty if none wrote."""
    for index, item in enumerate(prompts):
        prompt = item.prompt
        yield PromptExcerpt(
            prompt_id=prompt.prompt_id,
            domain=prompt.domain,
            prompt=prompt.text,
            written=written[index] if written else None,
            stacks=excerpt_rows(rows, prompt.prompt_id, most_tokens=most_tokens),
        )


def count_tokens(
    token_ids: Sequence[NDArray[np.int32]], generation: GenerationOptions | None
) -> int:
    """Return the largest number of tokens that prompts may put through a model."""
    num_new = generation.max_new_tokens if generation else 0
    return sum(len(ids) + num_new for ids in token_ids)
