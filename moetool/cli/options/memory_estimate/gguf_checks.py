"""Tell GGUF files from other models, and read what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.errors import MoetoolError, UsageError

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario
    from moetool.memory.serving.gguf.options import GgufOptions
    from moetool.memory.serving.gguf.question import GgufQuestion


def check_models(models: Sequence[str], own: GgufOptions) -> bool:
    """Return whether the models are GGUF files.

    Args:
        models: As they were named. Those that are not there are reported later.
        own: The options about GGUF files.

    Raises:
        UsageError: Only some are, or such an option is given and none is.
    """
    from moetool.checkpoint.reference import resolve_model

    are_gguf = []
    for model in models:
        with suppress(MoetoolError):
            are_gguf.append(resolve_model(model).is_gguf)
    if any(are_gguf) and not all(are_gguf):
        raise UsageError(
            "GGUF files are estimated by llama.cpp's rules, other models by their own code.",
            hint="Name them in separate commands.",
        )
    if are_gguf and not any(are_gguf):
        own.refuse()
    return any(are_gguf)


def read_question(
    own: GgufOptions, *, gpu: str | None, overhead: str | None, scenarios: Sequence[Scenario]
) -> GgufQuestion:
    """Return what is asked of GGUF files.

    Raises:
        UsageError: A value has no meaning, or there are several numbers of sequences.
    """
    from moetool.memory.serving.gguf.options import make_question

    if len(scenarios) != 1:
        raise UsageError(
            "GGUF files are estimated for one number of sequences at a time.",
            hint="Name one --batch-size.",
        )
    options = replace(own, engine_overhead=overhead)
    return make_question(options, gpu=gpu, num_sequences=scenarios[0].batch_size)
