"""Refuse assistants that transformers refuses, or whose runs are not simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.choices import without_effect
from moetool.errors import UsageError
from moetool.simulation.caches.kinds import CacheKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.memory.scenario import Scenario

_ASSISTANT = {"--assistant": "an assistant"}


def refuse_assisting(scenario: Scenario) -> None:
    """Refuse a scenario whose assistant contradicts its other options.

    Raises:
        UsageError: transformers refuses the options together, or ignores the assistant.
    """
    if scenario.assistant is None:
        return
    if scenario.task != "generate":
        raise without_effect(
            _ASSISTANT, because="it only helps to generate", unless="choose --task generate"
        )
    if scenario.num_beams > 1:
        raise without_effect(
            _ASSISTANT,
            because="transformers ignores it in a search with beams",
            unless="leave out --num-beams",
        )
    if scenario.num_return_sequences > 1:
        raise UsageError(
            "transformers returns one sequence where an assistant drafts tokens.",
            hint="Leave out --num-return-sequences, or --assistant.",
        )
    if scenario.batch_size > 1:
        raise UsageError(
            f"transformers takes one prompt where an assistant drafts tokens, not {scenario.batch_size:,}.",
            hint="Give --batch-size 1, or leave out --assistant.",
        )
    if scenario.cache is CacheKind.QUANTIZED:
        raise UsageError(
            "A quantized cache can't take candidates back, which an assistant makes necessary.",
            hint="Leave out --cache and --cache-dtype, or --assistant.",
        )
    if scenario.cache is not CacheKind.DYNAMIC:
        raise UsageError(
            "With an assistant, only dynamic caches are simulated.",
            hint="Leave out --cache, or --assistant.",
        )


def refuse_elsewhere(scenario: Scenario, *, where: str | None) -> None:
    """Refuse an assistant where only one model is run.

    Args:
        where: Which of the other options makes it impossible, by its flag; None if none does.

    Raises:
        UsageError: There is one.
    """
    if scenario.assistant is not None and where is not None:
        raise UsageError(
            "A run with an assistant is only estimated for one GPU, with transformers, and not measured.",
            hint=f"Leave out {where}, or --assistant.",
        )


def refuse_pair(
    target: PreTrainedModel, assistant: PreTrainedModel, *, names: tuple[str, str]
) -> None:
    """Refuse an assistant that can't draft for a target.

    Args:
        names: What messages call the target and the assistant.

    Raises:
        UsageError: transformers refuses it, or the run is not simulated.
    """
    for model, name in zip((target, assistant), names, strict=True):
        if model.config.is_encoder_decoder:
            raise UsageError(
                f"{name} has an encoder, and only decoders are simulated with an assistant.",
                hint="Leave out --assistant.",
            )
        any_model: Any = model
        if any_model._is_stateful:
            raise UsageError(
                f"transformers doesn't let an assistant draft tokens where {name} can't take states "
                "back.",
                hint="Leave out --assistant.",
            )
    sizes = [model.config.get_text_config().vocab_size for model in (target, assistant)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"{names[0]} and {names[1]} have vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens, and "
            "runs that translate between tokenizers are not simulated.",
            hint="Name an assistant with the same tokenizer.",
        )
