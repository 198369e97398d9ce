"""Run a model over prompts and hand its routing decisions to a sink, window by window."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.errors import OutOfMemoryError, UsageError
from moetool.trace.counts import ExpertCounter, ExpertCounts
from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.writer import TraceSink
from moetool.tracing.batches import Batch, make_batches, split_windows
from moetool.tracing.loading import is_out_of_memory
from moetool.tracing.probabilities import ScoreFunction, find_score_function
from moetool.tracing.recorder import RoutingRecorder
from moetool.tracing.recording import RecordedCall, RecordedLayer
from moetool.tracing.tokens import TokenizedPrompt, spell_tokens

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
        advance: Told after each batch how many real tokens it held.

    Raises:
        UntraceableError: A call can't be recorded exactly.
        OutOfMemoryError: A batch doesn't fit.
        UsageError: A layer number has no routed experts.
    """
    counter = ExpertCounter(by="domain")
    score_functions: dict[str, ScoreFunction] = {}
    routed: tuple[RoutedLayer, ...] = ()
    num_rows, num_tokens, num_decisions = 0, 0, 0
    pad_token_id = tokenizer.pad_token_id or 0
    try:
        recorder = RoutingRecorder(model, layers=layers, keep_scores=with_probabilities)
    except ValueError as error:
        raise UsageError(f"--layers: {error}.", hint="Name layers that route.") from error
    with recorder:
        for window in split_windows(prompts, batch_size=batch_size):
            batches = []
            for batch in make_batches(window, batch_size=batch_size, pad_token_id=pad_token_id):
                _forward(model, batch)
                (call,) = recorder.take_calls()
                batches.append((batch, call))
                if advance is not None:
                    advance(len(call.position))
            order, tokens = _collect_tokens(window, batches, tokenizer)
            by_layer = list(zip(*(call.layers for _, call in batches), strict=True))
            decisions = [_collect_decisions(recorded, order) for recorded in by_layer]
            if with_probabilities:
                decisions = [
                    _add_probabilities(layer, recorded, order, score_functions)
                    for layer, recorded in zip(decisions, by_layer, strict=True)
                ]
            if not routed:
                routed = _describe_layers(recorder, decisions)
                sink.describe(replace(metadata, layers=routed))
            rows = assignment_rows(tokens, decisions)
            sink.write(rows, probability_rows(tokens, decisions) if with_probabilities else None)
            counter.add(rows)
            num_rows += rows.num_rows
            num_tokens += len(tokens.token_id)
            num_decisions += sum(len(layer.experts) for layer in decisions)
    complete = replace(
        metadata,
        complete=True,
        layers=routed,
        num_prompts=len(prompts),
        num_tokens=num_tokens,
        num_decisions=num_decisions,
        num_cut_prompts=sum(prompt.was_cut for prompt in prompts),
        score_function=next((item.name for item in score_functions.values()), None),
    )
    sink.finish(complete)
    return TracedRun(metadata=complete, counts=counter.counts(routed), num_rows=num_rows)


def _forward(model: PreTrainedModel, batch: Batch) -> None:
    """Run one prefill, asking for no cache and for the last position's logits only."""
    accepted = inspect.signature(model.forward).parameters
    wishes: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.from_numpy(batch.input_ids).to(model.device),
                attention_mask=torch.from_numpy(batch.attention_mask).to(model.device),
                **{name: value for name, value in wishes.items() if name in accepted},
            )
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            num_rows, num_slots = batch.input_ids.shape
            raise OutOfMemoryError(
                f"Memory ran out in a batch of {num_rows} prompts of up to {num_slots} tokens on "
                f"{model.device}.",
                hint="Give a smaller --batch-size, or shorten prompts with --max-prompt-tokens.",
            ) from error
        raise


def _collect_tokens(
    window: Sequence[TokenizedPrompt],
    batches: Sequence[tuple[Batch, RecordedCall]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[NDArray[np.intp], TracedTokens]:
    """Return a window's tokens by prompt and position, and the order that makes them so.

    Before ordering, tokens lie batch by batch, as the recorder saw them.
    """
    prompt = np.concatenate([batch.prompts[call.batch_index] for batch, call in batches])
    position = np.concatenate([call.position for _, call in batches])
    order = np.lexsort((position, prompt))  # (num_tokens,)
    token_id = np.concatenate([item.token_ids for item in window])
    return order, TracedTokens(
        prompt_ids=[item.prompt.prompt_id for item in window],
        domains=[item.prompt.domain for item in window],
        prompt=prompt[order],
        position=position[order],
        phase=np.zeros(len(order), dtype=np.int8),
        token_id=token_id,
        pieces=spell_tokens(token_id, tokenizer),
    )


def _collect_decisions(
    recorded: Sequence[RecordedLayer], order: NDArray[np.intp]
) -> LayerDecisions:
    """Return one layer's decisions over the batches of a window, in the order of its tokens."""
    return LayerDecisions(
        stack=recorded[0].place.stack,
        layer=recorded[0].place.layer,
        experts=np.concatenate([item.experts for item in recorded])[order],
        weights=np.concatenate([item.weights for item in recorded])[order],
    )


def _add_probabilities(
    decisions: LayerDecisions,
    recorded: Sequence[RecordedLayer],
    order: NDArray[np.intp],
    score_functions: dict[str, ScoreFunction],
) -> LayerDecisions:
    """Return one layer's decisions with its router's probabilities.

    What turns scores into probabilities is found once a layer and kept in `score_functions`.
    """
    path = recorded[0].place.experts_path
    if path not in score_functions:
        score_functions[path] = find_score_function(recorded[0])
    scores = np.concatenate([item.scores for item in recorded if item.scores is not None])
    return replace(decisions, probabilities=score_functions[path].apply(scores[order]))


def _describe_layers(
    recorder: RoutingRecorder, decisions: Sequence[LayerDecisions]
) -> tuple[RoutedLayer, ...]:
    top_k = {(layer.stack, layer.layer): layer.experts.shape[1] for layer in decisions}
    return tuple(
        RoutedLayer(
            stack=place.stack,
            layer=place.layer,
            module=place.experts_path,
            router=recorder.find_router(place),
            num_experts=place.num_experts,
            num_identity_experts=place.num_identity_experts,
            top_k=top_k[place.stack, place.layer],
        )
        for place in recorder.layers
        if (place.stack, place.layer) in top_k
    )
