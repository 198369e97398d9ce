"""From a model's name and prompts to a trace of its routing: the whole way, cheapest checks first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, get_args

import moetool
from moetool.checkpoint.config import load_config, load_tokenizer
from moetool.checkpoint.files import Checkpoint, open_checkpoint
from moetool.checkpoint.reference import ModelReference
from moetool.choices import choose_word, take_count, take_flag, take_numbers, take_text
from moetool.errors import UsageError
from moetool.memory.scenario import Dtype
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.prompts.prompts import Prompt, hash_prompts
from moetool.tracing.prompts.tokens import (
    SpecialTokens,
    count_embeddings,
    read_context_tokens,
    tokenize_prompts,
)
from moetool.tracing.running.texts import TextFile

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moetool.tracing.generation_options import GenerationOptions
    from moetool.tracing.run import TracedRun

# Beyond any machine's.
_LARGEST_NUMBER = 2**27
_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "pyarrow")


@dataclass(frozen=True)
class TraceOptions:
    """How to trace.

    Raises:
        UsageError: An option has no such choice, or a number is out of range.

    Attributes:
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run the repository's own code.
        dtype: Of the weights; None for the checkpoint's own.
        device: Where to run; None for a GPU if there is one.
        device_map: How to spread the model over devices instead, see `choose_device_map`.
        batch_size: Prompts that go through the model together.
        layers: Record only these layer numbers.
        special_tokens: Who adds special tokens to the prompts.
        max_prompt_tokens: Cut prompts after so many tokens.
        with_probabilities: Record the routers' probabilities as well.
        allow_inexact: Trace models whose experts carry out other decisions than those recorded.
        generation: Continue each prompt, and record this too.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    batch_size: int = 8
    layers: frozenset[int] | None = None
    special_tokens: SpecialTokens = "tokenizer"
    max_prompt_tokens: int | None = None
    with_probabilities: bool = False
    allow_inexact: bool = False
    generation: GenerationOptions | None = None

    def __post_init__(self) -> None:
        for name, words in (("dtype", list(Dtype)), ("special_tokens", get_args(SpecialTokens))):
            value = getattr(self, name)
            if value is not None or name != "dtype":
                choose_word(value, words, name=name.replace("_", " "))
        for name in ("revision", "device", "device_map"):
            value = getattr(self, name)
            if value is not None:
                take_text(value, name=name.replace("_", " "))
        for name in ("trust_remote_code", "with_probabilities", "allow_inexact"):
            take_flag(getattr(self, name), name=name)
        take_count(self.batch_size, name="batch size", smallest=1, largest=_LARGEST_NUMBER)
        if self.max_prompt_tokens is not None:
            name = "most tokens of a prompt"
            take_count(self.max_prompt_tokens, name=name, smallest=1, largest=_LARGEST_NUMBER)
        take_numbers(self.layers, name="layer", largest=_LARGEST_NUMBER)
        if self.generation is not None and not hasattr(self.generation, "max_new_tokens"):
            raise UsageError(
                f"How to generate can't be given as {type(self.generation).__name__}.",
                hint="Give GenerationOptions, or None.",
            )


class Observer(Protocol):
    """Someone who watches a long run."""

    def announce(self, line: str) -> None:
        """Take a line about what is about to happen."""

    def warn(self, line: str) -> None:
        """Take a line that must be seen."""

    def start(self, num_tokens: int) -> None:
        """Take the number of tokens that will go through the model."""

    def advance(self, num_tokens: int) -> None:
        """Take the number of tokens that just did."""


def trace_model(
    reference: ModelReference,
    prompts: Sequence[Prompt],
    options: TraceOptions,
    *,
    open_sink: Callable[[TraceMetadata], TraceSink],
    observer: Observer,
    open_texts: Callable[[], AbstractContextManager[TextFile]] | None = None,
) -> TracedRun:
    """Load the model, run it over the prompts, write the trace, and return the run in figures.

    What can be known from the configuration and the tokenizer alone is checked before any weights
    are loaded.

    Raises:
        MoetoolError: See the functions it is made of.
    """
    checkpoint = open_checkpoint(
        reference,
        revision=options.revision,
        with_code=options.trust_remote_code,
        announce=observer.announce,
    )
    # Only now, because they bring in torch: what is wrong with the files is said at once.
    from moetool.tracing.run import count_tokens, trace_prompts
    from moetool.tracing.running.devices import choose_device, choose_device_map
    from moetool.tracing.running.load_model import load_model

    if options.device_map is None:
        device_map: str | dict[str, Any] = {"": choose_device(options.device)}
    else:
        device_map = choose_device_map(options.device_map)
    config = load_config(checkpoint, trust_remote_code=options.trust_remote_code)
    reasons, vocabulary = _check_traceable(config, checkpoint, options, device_map=device_map)
    for reason in reasons:
        observer.warn(f"{checkpoint.name} is not traced exactly: {reason}.")
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code)
    tokenized = tokenize_prompts(
        prompts,
        tokenizer,
        special_tokens=options.special_tokens,
        context_tokens=read_context_tokens(config),
        vocabulary=vocabulary,
        max_prompt_tokens=options.max_prompt_tokens,
        max_new_tokens=_count_new_tokens(config, options),
    )
    with TemporaryDirectory(prefix="moetool-offload-") as offload_folder:
        model = load_model(
            checkpoint,
            config,
            device_map=device_map,
            offload_folder=offload_folder,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
        )
        metadata = _describe_run(model, checkpoint, options, prompts=prompts)
        token_ids = [prompt.token_ids for prompt in tokenized]
        observer.start(count_tokens(token_ids, options.generation))
        # The texts open first, so that the trace is there when they are.
        with (
            open_texts() if open_texts else nullcontext() as texts,
            open_sink(metadata) as sink,
        ):
            return trace_prompts(
                model,
                tokenizer,
                tokenized,
                sink=sink,
                metadata=metadata,
                batch_size=options.batch_size,
                layers=options.layers,
                with_probabilities=options.with_probabilities,
                allow_inexact=options.allow_inexact,
                generation=options.generation,
                texts=texts,
                advance=observer.advance,
            )


def _count_new_tokens(config: PreTrainedConfig, options: TraceOptions) -> int:
    """Return how many tokens follow each prompt in the same context."""
    if options.generation is None or config.is_encoder_decoder:
        return 0
    return options.generation.max_new_tokens


def _check_traceable(
    config: PreTrainedConfig,
    checkpoint: Checkpoint,
    options: TraceOptions,
    *,
    device_map: str | dict[str, Any],
) -> tuple[list[str], int | None]:
    """Refuse on the skeleton what would be refused after minutes of loading.

    Returns:
        Why the trace will not be exact, if it will not and may be so; and how many token ids the
        model has, if that is known.
    """
    from moetool.anatomy.routing.moe_layers import find_moe_layers, select_layers
    from moetool.anatomy.skeleton.build import build_skeleton, find_auto_class, refuse_unbuildable
    from moetool.tracing.running.devices import check_device_map
    from moetool.tracing.running.generation import check_can_generate

    find_auto_class(config)
    with refuse_unbuildable(checkpoint.name, config, trust_remote_code=options.trust_remote_code):
        skeleton = build_skeleton(config, trust_remote_code=options.trust_remote_code)
    if options.generation is not None:
        check_can_generate(skeleton)
    found = find_moe_layers(skeleton, allow_inexact=options.allow_inexact)
    try:
        layers = select_layers(found, options.layers)
    except UsageError as error:
        words = f"{error.message[0].lower()}{error.message[1:]}"
        raise UsageError(f"--layers: {words}", hint=error.hint) from error
    if options.device_map is not None:
        check_device_map(device_map, skeleton, name=options.device_map)
    reasons = dict.fromkeys(layer.rule.inexact_because for layer in layers)
    return [reason for reason in reasons if reason], count_embeddings(skeleton)


def _describe_run(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    options: TraceOptions,
    *,
    prompts: Sequence[Prompt],
) -> TraceMetadata:
    """Return what is known of the run before its first batch."""
    from moetool.anatomy.skeleton.build import find_auto_class
    from moetool.tracing.quantization_method import find_quantization_method
    from moetool.tracing.running.devices import name_devices

    config = model.config
    text_config = config.get_text_config()
    generation = options.generation
    return TraceMetadata(
        moetool=moetool.__version__,
        model=checkpoint.name,
        revision=checkpoint.revision,
        model_type=config.model_type,
        auto_class=find_auto_class(config),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=find_quantization_method(config),
        device=name_devices(model),
        device_map=options.device_map,
        attention_implementation=getattr(text_config, "_attn_implementation", None),
        experts_implementation=getattr(text_config, "_experts_implementation", None),
        special_tokens=options.special_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        prompts_sha256=hash_prompts(prompts),
        max_new_tokens=generation.max_new_tokens if generation else 0,
        temperature=generation.temperature if generation else None,
        top_p=generation.top_p if generation else None,
        seed=generation.seed if generation and not generation.is_greedy else None,
        cache=generation.cache if generation else None,
        versions={name: version(name) for name in _LIBRARIES},
    )
