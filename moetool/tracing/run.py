"""Run a model over prompts and write its routing decisions to a sink, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.process.quiet import quiet_transformers
from moetool.trace.excerpt import PromptExcerpt
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.assembly.following import LeftBatches, follow
from moetool.tracing.assembly.row_threads import RowThreads
from moetool.tracing.assembly.shares import (
    ShareResult,
    join_results,
    take_share,
    wait_for_windows,
    write_texts,
)
from moetool.tracing.assembly.window_run import RanBatch, WindowRun
from moetool.tracing.options import GenerationOptions, TraceOptions
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.processes.processes import Processes
from moetool.tracing.prompts.tokens import TokenizedPrompt, choose_pad, count_embeddings
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.recording.saliency.observer_file import pack_observer_data
from moetool.tracing.recording.saliency.sums_file import add_sums, take_sums, unpack_sums
from moetool.tracing.running.batches import Batch, WindowPrompts, list_windows, make_batches
from moetool.tracing.running.generation import (
    Continuation,
    check_can_generate,
    choose_batch_seed,
    generation_settings,
    takes_left_pads,
)
from moetool.tracing.running.memory_errors import explaining_memory
from moetool.tracing.running.passes import check_can_read, read_batch, write_batch
from moetool.tracing.running.texts import TextFile
from moetool.tracing.timing import RunTimings, Stage, StageClock
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
    agreement: Agreement | None = None,
    processes: Processes | None = None,
) -> TracedRun:
    """Run a loaded model over prompts, write every decision, and return the figures of the run.

    Rows come in the order of the prompts whatever the batch size. Memory holds the decisions of a
    few windows at a time: threads make and write the rows of earlier ones while the model reads on.

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
        agreement: Compares what the processes record that share the model; None if none do. The
            first of them writes everything, and the others return no rows.
        processes: Share the prompts, and all return the figures of the first; None for one process.

    Raises:
        UntraceableError: A call can't be recorded exactly.
        OutOfMemoryError: A batch doesn't fit.
        UsageError: A layer number has no routed experts, or the model can't generate.
    """
    clock, processes = clock or StageClock(), processes or Processes()
    generation = options.generation
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
    with_texts = processes.broadcast(texts is not None)
    finished, known = sink.list_finished(), sink.known_metadata()

    def describe() -> TraceMetadata:
        layers = describe_layers(recorder, maker.widths, known.layers)
        function = known.score_function or maker.score_function
        weigh_input = sum(map(recorder.weighs_input, recorder.layers))
        noted = note_routing(metadata, layers, weigh_input=weigh_input)
        return replace(noted, score_function=function)

    def count(token_ids: Sequence[NDArray[np.int32]]) -> None:
        if advance is not None and token_ids:
            advance(count_tokens(token_ids, generation))

    def run_batch(window: WindowPrompts, index: int, batch: Batch) -> RanBatch:
        token_ids = [window.prompts[prompt].token_ids for prompt in batch.prompts]
        written: Sequence[Continuation] = ()
        with clock.measure(Stage.FORWARD), explaining_memory(recorder, batch):
            if generation is None:
                sequences = read_batch(recorded, batch, token_ids=token_ids)
            else:
                seed = choose_batch_seed(generation, window=window.index, batch=index)
                sequences, written = write_batch(recorded, batch, token_ids=token_ids, seed=seed)
            receipts = recorder.take_receipts()
        if agreement is not None:
            agreement.add(receipts)
        count(token_ids)
        saliency = take_sums(recorder.saliency)
        return RanBatch(batch.prompts, sequences, receipts, written, saliency)

    def list_batches(window: WindowPrompts) -> Iterator[Batch]:
        return make_batches(
            window.prompts,
            batch_size=options.batch_size,
            max_batch_tokens=options.max_batch_tokens,
            num_new_tokens=options.max_new_tokens,
            pad_token_id=pad_token_id,
            pad_side="right" if generation is None or recorded.encoder else "left",
            without_pads=generation is not None and not takes_left_pads(model),
        )

    def run_window(window: WindowPrompts) -> WindowRun:
        run = WindowRun(
            window,
            sink=sink,
            maker=maker,
            tokenizer=tokenizer,
            with_texts=with_texts or bool(generation and window.start < num_excerpts),
            with_saliency=options.with_saliency,
            layers=recorder.layers,
            describe=lambda: sink.describe(describe()),
        )
        count(run.kept_token_ids)
        run.run(list_batches(window), partial(run_batch, window))
        if agreement is not None:
            run.agreed = agreement.compare()
        return run

    windows = list_windows(prompts, options)
    if agreement is not None:
        left = agreement.broadcast(_list_left(windows, sink) if agreement.leads else {})
        if not agreement.leads:
            with settings, recorder if left else nullcontext():
                follow(windows, left, agreement, list_batches=list_batches, run_batch=run_batch)
            return TracedRun(metadata, DomainCounter().counts(()), 0, clock.read(num_tokens=0))
    share = take_share(processes, windows, finished)
    threads = RowThreads(
        sink,
        maker,
        # Texts of several processes are joined at the end.
        texts=None if processes.are_several else texts,
        clock=clock,
        num_excerpts=num_excerpts,
    )
    # A recorder that sees no call raises an error.
    is_left = any(window.index not in finished for window in share)
    with settings, recorder if is_left else nullcontext(), threads:
        for window in share:
            if window.index in finished:
                count([prompt.token_ids for prompt in window.prompts])
                threads.take(window, finished[window.index])
            else:
                threads.make(run_window(window))
    result = ShareResult(threads.totals, maker.score_function, metadata.device)
    if processes.are_several:
        if not processes.is_first:
            sink.finish(metadata)
        result = join_results(
            processes, result, prompt_ids=[each.prompt.prompt_id for each in prompts]
        )
        if not processes.is_first:
            of_first: TracedRun = processes.receive()
            return of_first
        wait_for_windows(sink, number=len(windows))
        known = sink.known_metadata()
        if texts is not None:
            write_texts(sink, texts)
    totals = result.totals
    assert totals.facts is not None
    complete = replace(
        describe(),
        complete=True,
        score_function=known.score_function or result.score_function,
        device=result.device,
        num_prompts=len(prompts),
        num_tokens=totals.facts.num_tokens,
        num_new_tokens=totals.facts.num_new_tokens,
        num_decisions=totals.facts.num_decisions,
        num_cut_prompts=sum(prompt.was_cut for prompt in prompts),
    )
    with clock.measure(Stage.WRITE):
        sink.finish(
            complete, join_saliency(sink, recorder.layers) if options.with_saliency else None
        )
    traced = TracedRun(
        metadata=complete,
        counts=totals.counter.counts(complete.layers),
        num_rows=totals.num_rows,
        timings=clock.read(num_tokens=totals.facts.num_tokens),
        excerpts=tuple(totals.excerpts),
    )
    return processes.broadcast(traced)


def _list_left(windows: Sequence[WindowPrompts], sink: TraceSink) -> LeftBatches:
    """Return the windows that no earlier run has written, with the batches of them that one kept."""
    finished = sink.list_finished()
    return {
        window.index: frozenset(sink.kept_batches(window.index))
        for window in windows
        if window.index not in finished
    }


def join_saliency(sink: TraceSink, layers: Sequence[MoeLayer]) -> bytes:
    """Return the file of the sums of all windows, added in their order."""
    sums = [window.read_saliency() for window in sink.list_finished().values()]
    return pack_observer_data(add_sums(unpack_sums(each, layers) for each in sums if each))


def count_tokens(
    token_ids: Sequence[NDArray[np.int32]], generation: GenerationOptions | None
) -> int:
    """Return the largest number of tokens that prompts may put through a model."""
    num_new = generation.max_new_tokens if generation else 0
    return sum(len(ids) + num_new for ids in token_ids)
