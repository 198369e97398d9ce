"""Trace a model: open its checkpoint, check it, load it, run it, write its routing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from moetool.checkpoint.config import load_config, load_tokenizer
from moetool.checkpoint.files import open_checkpoint
from moetool.checkpoint.reference import ModelReference
from moetool.trace.excerpt import choose_num_excerpts
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.options import TraceOptions
from moetool.tracing.parallel.model_sharing import (
    ModelSharing,
    NoPlace,
    ending_together,
    share_model,
)
from moetool.tracing.processes.processes import Processes
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import (
    TokenizedPrompt,
    count_embeddings,
    read_context_tokens,
    tokenize_prompts,
)
from moetool.tracing.running.texts import TextFile
from moetool.tracing.timing import Stage, StageClock
from moetool.tracing.traceable import check_recordable, check_traceable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from moetool.tracing.run import TracedRun


class Observer(Protocol):
    """Follows a long run, as a progress bar does."""

    def announce(self, line: str) -> None:
        """Show what is about to happen."""

    def warn(self, line: str) -> None:
        """Show a warning."""

    def step(self, words: str) -> None:
        """Show the step that begins, before any token goes through the model."""

    def count(self, num_done: int, num_all: int, unit: str) -> None:
        """Show how much of the current step is done."""

    def start(self, num_tokens: int) -> None:
        """Begin a run in which this many tokens will go through the model."""

    def advance(self, num_tokens: int) -> None:
        """Count tokens that went through it."""


class TracePlace(Protocol):
    """The place of a run's rows, see `choose_sink`."""

    def check(self, identity: RunIdentity) -> None:
        """Refuse a run that can't go on with what is there."""

    def open(self, metadata: TraceMetadata, identity: RunIdentity) -> TraceSink:
        """Return the sink of the rows."""


def trace_model(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    options: TraceOptions,
    *,
    place: TracePlace,
    observer: Observer,
    open_texts: Callable[[], AbstractContextManager[TextFile]] | None = None,
    num_excerpts: int | None = 0,
    clock: StageClock | None = None,
    processes: Processes | None = None,
) -> TracedRun:
    """Load a model, run it over prompts, write the trace, and return the figures of the run.

    Everything that the configuration and the tokenizer show is checked before any weights are
    loaded.

    Args:
        reference: The model, see `resolve_model`.
        prompts: See `read_prompts`.
        options: Settings for loading the model and for recording.
        place: The place of the rows, see `choose_sink`.
        observer: Is informed of progress.
        open_texts: Opens the place of the generated texts, see `choose_texts`.
        num_excerpts: Number of prompts, from the first, to return excerpts of. None chooses all
            prompts of a run of a few.
        clock: Measures the whole run; None measures from here on.
        processes: This process and those that run the same. They share the prompts, each with its
            own copy of the model, or under a plan the model; the first opens and finishes the
            trace, and all return its figures. None looks for them under a plan, else stands for
            one process.

    Raises:
        MoetoolError: See the functions that this one calls.
    """
    clock = clock or StageClock()
    sharing = share_model(options.parallel, processes)
    if sharing is not None and not sharing.processes.is_first:
        place, open_texts = NoPlace(), None
    # Those that share the prompts.
    processes = Processes() if processes is None or sharing is not None else processes
    checkpoint = open_checkpoint(
        reference,
        revision=options.revision,
        with_code=options.trust_remote_code,
        announce=observer.announce,
    )
    observer.step("loading libraries")
    # These import torch, which takes seconds: faults in the files are reported before.
    from moetool.tracing.running.description import describe_run
    from moetool.tracing.running.devices import choose_device, choose_device_map
    from moetool.tracing.running.identity import identify_run
    from moetool.tracing.running.load_model import load_model
    from moetool.tracing.running.own_device import choose_own_device

    device_map: str | dict[str, Any] | None = None
    if processes.are_several:
        device_map = {"": choose_own_device(processes, options.device)}
    elif options.device_map is not None:
        device_map = choose_device_map(options.device_map)
    elif sharing is None:
        device_map = {"": choose_device(options.device)}
    observer.step(f"finding the routed layers of {checkpoint.name}")
    config = load_config(checkpoint, trust_remote_code=options.trust_remote_code)
    traceable = check_traceable(config, checkpoint, options, device_map=device_map, sharing=sharing)
    _warn_of_inexact(traceable.inexact_because, checkpoint.name, observer)
    observer.step("turning prompts into tokens")
    with clock.measure(Stage.TOKENIZE):
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code)
        vocabulary = traceable.num_token_ids
        tokenized = _tokenize(
            prompts, tokenizer, config, options, vocabulary=vocabulary, observer=observer
        )
        identity = identify_run(
            checkpoint,
            options,
            prompts=tokenized,
            device_map=device_map,
            num_sharing=sharing.processes.number if sharing else None,
            with_texts=open_texts is not None,
        )
    place.check(identity)
    with TemporaryDirectory(prefix="moetool-offload-") as offload_folder, ending_together(sharing):
        observer.step(f"loading the weights of {checkpoint.name}")
        with clock.measure(Stage.LOAD):
            model = load_model(
                checkpoint,
                config,
                auto_class=traceable.auto_class,
                device_map=device_map,
                offload_folder=offload_folder,
                distributed_config=sharing.make_config() if sharing else None,
                dtype=options.dtype,
                quantization=options.quantization,
                trust_remote_code=options.trust_remote_code,
                advance=partial(observer.count, unit="tensors"),
            )
        if sharing is not None:
            sharing.check_loaded(model, name=checkpoint.name)
        metadata = describe_run(
            model,
            options,
            name=checkpoint.name,
            revision=checkpoint.revision,
            auto_class=traceable.auto_class,
            prompts=prompts,
            counted=traceable.counted,
            parallel_size=sharing.processes.number if sharing else None,
        )
        return _run(
            model,
            tokenizer,
            tokenized,
            options,
            sharing=sharing,
            metadata=metadata,
            place=place,
            identity=identity,
            observer=observer,
            open_texts=open_texts,
            num_excerpts=choose_num_excerpts(num_excerpts, num_prompts=len(prompts)),
            clock=clock,
            processes=processes,
        )


def trace_loaded_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    options: TraceOptions,
    *,
    place: TracePlace,
    observer: Observer,
    open_texts: Callable[[], AbstractContextManager[TextFile]] | None = None,
) -> TracedRun:
    """Run a model that is in memory over prompts, as `trace_model` does after loading one.

    Args:
        model: In evaluation mode.
        tokenizer: The model's own.
        prompts: See `read_prompts`.
        options: Those about loading have no effect here.
        place: The place of the rows, see `choose_sink`.
        observer: Is informed of progress.
        open_texts: Opens the place of the generated texts, see `choose_texts`.

    Raises:
        MoetoolError: See the functions that this one calls.
    """
    from moetool.inspection.sources.from_module import count_module
    from moetool.tracing.running.description import describe_run
    from moetool.tracing.running.identity import identify_loaded_run

    clock = StageClock()
    config = model.config
    name = getattr(config, "name_or_path", None) or type(model).__name__
    _warn_of_inexact(check_recordable(model, options), name, observer)
    with clock.measure(Stage.TOKENIZE):
        vocabulary = count_embeddings(model)
        tokenized = _tokenize(
            prompts, tokenizer, config, options, vocabulary=vocabulary, observer=observer
        )
        identity = identify_loaded_run(
            model, options, prompts=tokenized, with_texts=open_texts is not None
        )
    place.check(identity)
    metadata = describe_run(
        model,
        options,
        name=name,
        revision=getattr(config, "_commit_hash", None),
        auto_class=None,
        prompts=prompts,
        counted=count_module(model),
    )
    return _run(
        model,
        tokenizer,
        tokenized,
        options,
        metadata=metadata,
        place=place,
        identity=identity,
        observer=observer,
        open_texts=open_texts,
        clock=clock,
    )


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    options: TraceOptions,
    *,
    sharing: ModelSharing | None = None,
    metadata: TraceMetadata,
    place: TracePlace,
    identity: RunIdentity,
    observer: Observer,
    open_texts: Callable[[], AbstractContextManager[TextFile]] | None,
    num_excerpts: int = 0,
    clock: StageClock,
    processes: Processes | None = None,
) -> TracedRun:
    from moetool.tracing.run import count_tokens, trace_prompts

    token_ids = [prompt.token_ids for prompt in prompts]
    observer.start(count_tokens(token_ids, options.generation))
    processes = processes or Processes()

    watched = sharing.processes if sharing else processes

    def advance(num_tokens: int) -> None:
        watched.check()
        observer.advance(num_tokens)

    # The last to open is the first to close: when the texts appear, the trace is there.
    with (
        open_texts() if open_texts and processes.is_first else nullcontext() as texts,
        place.open(metadata, identity) as sink,
        sharing.watch() if sharing else nullcontext() as agreement,
    ):
        return trace_prompts(
            model,
            tokenizer,
            prompts,
            options,
            sink=sink,
            metadata=metadata,
            texts=texts,
            advance=advance,
            num_excerpts=num_excerpts,
            clock=clock,
            processes=processes,
            agreement=agreement,
        )


def _tokenize(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    options: TraceOptions,
    *,
    vocabulary: int | None,
    observer: Observer,
) -> list[TokenizedPrompt]:
    return tokenize_prompts(
        prompts,
        tokenizer,
        special_tokens=options.special_tokens,
        context_tokens=read_context_tokens(config),
        vocabulary=vocabulary,
        max_prompt_tokens=options.max_prompt_tokens,
        max_new_tokens=_count_new_tokens(config, options),
        advance=partial(observer.count, unit="prompts"),
    )


def _count_new_tokens(config: PreTrainedConfig, options: TraceOptions) -> int:
    """Return how many tokens follow each prompt in the same context."""
    if options.generation is None or config.is_encoder_decoder:
        return 0
    return options.generation.max_new_tokens


def _warn_of_inexact(reasons: Sequence[str], name: str, observer: Observer) -> None:
    for reason in reasons:
        observer.warn(f"{name} is not traced exactly: {reason}.")
