"""Run a model over prompts and hand its routing decisions to a sink, window by window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.generation_options import GenerationOptions
from moetool.tracing.prompts.tokens import TokenizedPrompt, choose_pad, count_embeddings
from moetool.tracing.recording.recorder import RoutingRecorder
from moetool.tracing.recording.scopes import find_encoder, find_scopes
from moetool.tracing.running.batches import make_batches, split_windows
from moetool.tracing.running.generation import (
    Continuation,
    check_can_generate,
    generation_settings,
    takes_left_pads,
)
from moetool.tracing.running.passes import read_batch, write_batch
from moetool.tracing.running.texts import TextFile, decode_texts
from moetool.tracing.windows.collect import TracedBatch, collect_scopes
from moetool.tracing.windows.routed_layers import describe_layers, describe_routing
from moetool.tracing.windows.window import RowMaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TracedRun:
    """What a finished run recorded, in figures.

    Attributes:
        metadata: Of the complete trace.
        counts: Assignments by domain, layer and expert.
        num_rows: Assignments recorded.
    """

    metadata: TraceMetadata
    counts: ExpertCounts
    num_rows: int


@dataclass(frozen=True)
class WindowPasses:
    """What went through the model for the prompts of one window.

    Attributes:
        batches: In the order in which they ran.
        written: By the prompt's index in the window, what the model wrote after it.
    """

    batches: list[TracedBatch]
    written: dict[int, Continuation]

    @property
    def num_new_tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(item.token_ids) for item in self.written.values())

    def add(self, batch: TracedBatch, written: Sequence[Continuation]) -> None:
        """Take a batch and, if the model was to write, what it wrote after each row."""
        self.batches.append(batch)
        self.written.update(zip(batch.prompts.tolist(), written, strict=False))

    def in_order(self) -> list[Continuation]:
        """Return what was written in the order of the window's prompts."""
        return [self.written[index] for index in sorted(self.written)]


def trace_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    *,
    sink: TraceSink,
    metadata: TraceMetadata,
    batch_size: int = 8,
    layers: Collection[int] | None = None,
    with_probabilities: bool = False,
    allow_inexact: bool = False,
    generation: GenerationOptions | None = None,
    texts: TextFile | None = None,
    advance: Callable[[int], None] | None = None,
) -> TracedRun:
    """Run the model over the prompts, write every decision, and return the run in figures.

    Rows come in the order of the prompts whatever the batch size. Memory holds one window of
    decisions at a time.

    Args:
        model: With routed experts, in evaluation mode.
        tokenizer: Names the tokens and the pad.
        prompts: At least one.
        sink: Takes the rows.
        metadata: What is known of the model and the run; the counts and layers are filled in.
        batch_size: Prompts that go through the model together.
        layers: Record only these layer numbers.
        with_probabilities: Record the routers' probabilities as well.
        allow_inexact: Record layers whose decisions are not those that the experts carry out.
        generation: Continue each prompt, and record this too.
        texts: Takes what was written.
        advance: Called after each batch with the number of its tokens, counting `max_new_tokens` a prompt.

    Raises:
        UntraceableError: A call can't be recorded exactly.
        OutOfMemoryError: A batch doesn't fit.
        UsageError: A layer number has no routed experts, or the model can't write.
    """
    recorder = RoutingRecorder(
        model, layers=layers, keep_scores=with_probabilities, allow_inexact=allow_inexact
    )
    scopes = find_scopes(model, recorder.layers)
    settings: AbstractContextManager[None]
    if generation is not None:
        check_can_generate(model)
        settings = generation_settings(model, tokenizer, generation)
    else:
        _check_reading_routes(model, [scope.path for scope in scopes])
        settings = nullcontext()

    def run_window(window: Sequence[TokenizedPrompt]) -> WindowPasses:
        passes = WindowPasses([], {})
        for batch in make_batches(
            window,
            batch_size=batch_size,
            pad_token_id=choose_pad(tokenizer, vocabulary=count_embeddings(model)),
            pad_side="right" if generation is None or find_encoder(model) else "left",
            without_pads=generation is not None and not takes_left_pads(model),
        ):
            token_ids = [window[prompt].token_ids for prompt in batch.prompts]
            written: list[Continuation] = []
            if generation is None:
                sequences = read_batch(model, batch, token_ids=token_ids)
            else:
                sequences, written = write_batch(model, batch, token_ids=token_ids, scopes=scopes)
            passes.add(TracedBatch(batch.prompts, sequences, recorder.take_calls()), written)
            if advance is not None:
                advance(count_tokens(token_ids, generation))
        return passes

    counter = DomainCounter()
    maker = RowMaker(tokenizer, with_probabilities=with_probabilities)
    num_new_tokens = 0
    with settings, recorder:
        for window in split_windows(prompts, batch_size=batch_size):
            passes = run_window(window)
            rows, probabilities = maker.make_rows(window, collect_scopes(passes.batches))
            if maker.num_windows == 1:
                sink.describe(describe_routing(metadata, describe_layers(recorder, maker.top_k)))
            sink.write(rows, probabilities)
            counter.add(rows)
            num_new_tokens += passes.num_new_tokens
            if texts is not None:
                texts.write(decode_texts(window, passes.in_order(), tokenizer))
    routed = describe_layers(recorder, maker.top_k)
    complete = replace(
        describe_routing(metadata, routed),
        complete=True,
        num_prompts=len(prompts),
        num_tokens=maker.num_tokens,
        num_new_tokens=num_new_tokens,
        num_decisions=maker.num_decisions,
        num_cut_prompts=sum(prompt.was_cut for prompt in prompts),
        score_function=maker.score_function,
    )
    sink.finish(complete)
    return TracedRun(metadata=complete, counts=counter.counts(routed), num_rows=maker.num_rows)


def _check_reading_routes(model: PreTrainedModel, scopes: Sequence[str]) -> None:
    encoder = find_encoder(model)
    if encoder is not None and encoder not in scopes:
        raise UsageError(
            f"The encoder of {type(model).__name__} routes nothing in the layers asked for.",
            hint="Give --max-new-tokens to trace the decoder.",
        )


def count_tokens(
    token_ids: Sequence[NDArray[np.int32]], generation: GenerationOptions | None
) -> int:
    """Return how many tokens prompts put through a model at most."""
    num_new = generation.max_new_tokens if generation else 0
    return sum(len(ids) + num_new for ids in token_ids)
