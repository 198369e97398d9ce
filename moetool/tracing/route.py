"""From a model's name and prompts to a trace of its routing: the whole way, cheapest checks first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import moetool
from moetool.checkpoint.config import first_line, load_config, load_tokenizer
from moetool.checkpoint.files import Checkpoint, open_checkpoint
from moetool.checkpoint.reference import ModelReference
from moetool.errors import InputError, UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writer import TraceSink
from moetool.tracing.prompts import Prompt, hash_prompts
from moetool.tracing.tokens import (
    SpecialTokens,
    TokenizedPrompt,
    read_context_tokens,
    tokenize_prompts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moetool.tracing.run import TracedRun

_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "pyarrow")


@dataclass(frozen=True)
class TraceOptions:
    """How to trace.

    Attributes:
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run the repository's own code.
        dtype: Of the weights; None for the checkpoint's own.
        device: Where to run; None for a GPU if there is one.
        batch_size: Prompts that go through the model together.
        layers: Record only these layer numbers.
        special_tokens: Who adds special tokens to the prompts.
        max_prompt_tokens: Cut prompts after so many tokens.
        with_probabilities: Record the routers' probabilities as well.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 8
    layers: frozenset[int] | None = None
    special_tokens: SpecialTokens = "tokenizer"
    max_prompt_tokens: int | None = None
    with_probabilities: bool = False


class Observer(Protocol):
    """Someone who watches a long run."""

    def announce(self, line: str) -> None:
        """Take a line about what is about to happen."""

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
    from moetool.tracing.loading import choose_device, load_model
    from moetool.tracing.run import trace_prompts

    device = choose_device(options.device)
    config = load_config(checkpoint, trust_remote_code=options.trust_remote_code)
    _check_traceable(config, checkpoint, options)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code)
    tokenized = tokenize_prompts(
        prompts,
        tokenizer,
        special_tokens=options.special_tokens,
        context_tokens=read_context_tokens(config),
        max_prompt_tokens=options.max_prompt_tokens,
    )
    model = load_model(
        checkpoint,
        config,
        device=device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    metadata = _describe_run(model, checkpoint, options, prompts=prompts)
    observer.start(_count_tokens(tokenized))
    with open_sink(metadata) as sink:
        return trace_prompts(
            model,
            tokenizer,
            tokenized,
            sink=sink,
            metadata=metadata,
            batch_size=options.batch_size,
            layers=options.layers,
            with_probabilities=options.with_probabilities,
            advance=observer.advance,
        )


def _check_traceable(
    config: PreTrainedConfig, checkpoint: Checkpoint, options: TraceOptions
) -> None:
    """Refuse on the skeleton what would be refused after minutes of loading."""
    from moetool.anatomy.moe_layers import find_moe_layers, select_layers
    from moetool.anatomy.skeleton import build_skeleton, find_auto_class

    find_auto_class(config)
    try:
        skeleton = build_skeleton(config, trust_remote_code=options.trust_remote_code)
    except Exception as error:
        raise InputError(
            f"No model can be built from the config.json of {checkpoint.name}.",
            hint="Use the config.json that came with the checkpoint.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    try:
        select_layers(find_moe_layers(skeleton), options.layers)
    except ValueError as error:
        raise UsageError(f"--layers: {error}.", hint="Name layers that route.") from error


def _describe_run(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    options: TraceOptions,
    *,
    prompts: Sequence[Prompt],
) -> TraceMetadata:
    """Return what is known of the run before its first batch."""
    from moetool.anatomy.skeleton import find_auto_class

    config = model.config
    text_config = config.get_text_config()
    return TraceMetadata(
        moetool=moetool.__version__,
        model=checkpoint.name,
        revision=checkpoint.revision,
        model_type=config.model_type,
        auto_class=find_auto_class(config),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=_name_quantization(config),
        device=str(model.device),
        attention_implementation=getattr(text_config, "_attn_implementation", None),
        experts_implementation=getattr(text_config, "_experts_implementation", None),
        special_tokens=options.special_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        prompts_sha256=hash_prompts(prompts),
        versions={name: version(name) for name in _LIBRARIES},
    )


def _name_quantization(config: PreTrainedConfig) -> str | None:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method"))
    return str(getattr(quantization, "quant_method", quantization))


def _count_tokens(prompts: Sequence[TokenizedPrompt]) -> int:
    return sum(len(prompt.token_ids) for prompt in prompts)
