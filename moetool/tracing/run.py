"""Run a model over prompts and write its routing decisions to a sink, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.quiet import quiet_transformers
from moetool.trace.excerpt import PromptExcerpt, choose_excerpt_tokens, excerpt_rows
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.options import GenerationOptions, TraceOptions
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.prompts.tokens import TokenizedPrompt, choose_pad, count_embeddings
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.recording.saliency.observer_file import pack_observer_data
from moetool.tracing.running.batches import make_batches, plan_windows
from moetool.tracing.running.generation import (
    Continuation,
    check_can_generate,
    generation_settings,
    takes_left_pads,
)
from moetool.tracing.running.passes import check_can_read, read_batch, write_batch
from moetool.tracing.running.texts import TextFile, decode_texts
from moetool.tracing.timing import RunTimings, Stage, StageClock
from moetool.tracing.windows.collect import TracedBatch, collect_scopes
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


@dataclass(frozen=True)
class WindowPasses:
    """The batches of one window after they went through the model.

    Attributes:
        batches: In the order in which they ran.
        written: Continuations, by the prompt's index in the window.
    """

    batches: list[TracedBatch]
    written: dict[int, Continuation]

    @property
    def num_new_tokens(self) -> int:
        """Number of tokens that the model generated."""
        return sum(len(item.token_ids) for item in self.written.values())

    def add(self, batch: TracedBatch, written: Sequence[Continuation]) -> None:
        """Add a batch and, if the model generates text, the continuation of each row."""
        self.batches.append(batch)
        self.written.update(zip(batch.prompts.tolist(), written, strict=False))

    def in_order(self) -> list[Continuation]:
        """Return the continuations in the order of the window's prompts."""
        return [self.written[index] for index in sorted(self.written)]


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
    agreement: Agreement | None = None,
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
        agreement: Compares what is recorded with other processes that share the model.
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

    def run_window(window: Sequence[TokenizedPrompt]) -> WindowPasses:
        passes = WindowPasses([], {})
        for batch in make_batches(
            window,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            num_new_tokens=options.max_new_tokens,
            pad_token_id=pad_token_id,
            pad_side="right" if generation is None or recorded.encoder else "left",
            without_pads=generation is not None and not takes_left_pads(model),
        ):
            token_ids = [window[prompt].token_ids for prompt in batch.prompts]
            written: list[Continuation] = []
            with clock.measure(Stage.FORWARD):
                if generation is None:
                    sequences = read_batch(recorded, batch, token_ids=token_ids)
                else:
                    sequences, written = write_batch(recorded, batch, token_ids=token_ids)
            with clock.measure(Stage.COPY):
                calls = recorder.take_calls()
            if agreement is not None:
                agreement.add(calls)
            passes.add(TracedBatch(batch.prompts, sequences, calls), written)
            if advance is not None:
                advance(count_tokens(token_ids, generation))
        return passes

    counter = DomainCounter()
    maker = RowMaker(tokenizer, with_probabilities=options.with_probabilities)
    excerpts: list[PromptExcerpt] = []
    num_new_tokens = 0
    with settings, recorder:
        for planned in plan_windows(
            prompts,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            num_new_tokens=options.max_new_tokens,
        ):
            window = prompts[planned.start : planned.stop]
            passes = run_window(window)
            if agreement is not None:
                agreement.check()
            with clock.measure(Stage.BUILD):
                rows, probabilities = maker.make_rows(window, collect_scopes(passes.batches))
            if maker.num_windows == 1:
                sink.describe(note_routing(metadata, describe_layers(recorder, maker.top_k)))
            with clock.measure(Stage.WRITE):
                sink.write(rows, probabilities)
            counter.add(rows)
            num_new_tokens += passes.num_new_tokens
            written = passes.in_order()
            if texts is not None:
                texts.write(decode_texts(window, written, tokenizer))
            shown = window[: num_excerpts - len(excerpts)]
            spelled = decode_texts(shown, written[: len(shown)], tokenizer) if written else ()
            excerpts += _excerpt_prompts(
                shown,
                rows,
                written=[text.text for text in spelled],
                most_tokens=choose_excerpt_tokens(num_excerpts),
            )
    routed = describe_layers(recorder, maker.top_k)
    complete = replace(
        note_routing(metadata, routed),
        complete=True,
        num_prompts=len(prompts),
        num_tokens=maker.num_tokens,
        num_new_tokens=num_new_tokens,
        num_decisions=maker.num_decisions,
        num_cut_prompts=sum(prompt.was_cut for prompt in prompts),
        score_function=maker.score_function,
    )
    saliency = pack_observer_data(recorder.saliency) if options.with_saliency else None
    with clock.measure(Stage.WRITE):
        sink.finish(complete, saliency)
    return TracedRun(
        metadata=complete,
        counts=counter.counts(routed),
        num_rows=maker.num_rows,
        timings=clock.read(num_tokens=maker.num_tokens),
        excerpts=tuple(excerpts),
    )


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
