"""Refuse options of `moetool memory-estimate` that are about another kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from moetool.cli.options.memory_estimate.gguf import GgufValues
from moetool.errors import MoetoolError, UsageError

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario


def check_models(models: Sequence[str], own: GgufValues) -> bool:
    """Return whether the models are GGUF files.

    Args:
        models: As they were named. Those that are not there are reported later.
        own: The options about GGUF files.

    Raises:
        UsageError: Only some are, or such an option is given and none is.
    """
    from moetool.checkpoint.reference import ModelKind, resolve_model

    are_gguf = []
    for model in models:
        with suppress(MoetoolError):
            kind = resolve_model(model).kind
            are_gguf.append(kind in (ModelKind.GGUF, ModelKind.HUB_GGUF))
    if any(are_gguf) and not all(are_gguf):
        raise UsageError(
            "GGUF files are estimated by llama.cpp's rules, other models by their own code.",
            hint="Name them in separate commands.",
        )
    if are_gguf and not any(are_gguf) and any(value is not None for value in vars(own).values()):
        raise UsageError(
            "An option about GGUF files is given, and no GGUF file is named.",
            hint="Name a GGUF file. A checkpoint takes --prompt-tokens, --cache-dtype and "
            "--engine llama.cpp.",
        )
    return any(are_gguf)


def refuse_foreign(common: Scenario, others: Sequence[object], *, measure: bool) -> None:
    """Refuse options that llama.cpp doesn't have.

    Args:
        common: The options of a run of transformers.
        others: Further options that have no value by default.
        measure: Whether a measurement is asked for.

    Raises:
        UsageError: One of them is given.
    """
    from moetool.memory.scenario import Scenario

    is_default = common == Scenario(num_new_tokens=common.num_new_tokens)
    if not is_default or measure or any(value is not None for value in others):
        raise UsageError(
            "An option is given that llama.cpp doesn't have: GGUF files take --gpu, --batch-size, "
            "--engine-overhead and those of the panel 'GGUF files'.",
            hint="Leave out all others.",
        )
