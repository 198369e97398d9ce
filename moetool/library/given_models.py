"""Models as callers of the library give them: by name, or in memory with their tokenizers."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from moetool.checkpoint.reference import ModelReference, resolve_model
from moetool.choices import take_path
from moetool.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def find_reference(model: object) -> ModelReference:
    """Return a model that is given by its name or folder.

    Raises:
        UsageError: It is given in another way.
        InputError: The model can't be found.
    """
    if isinstance(model, str | PathLike):
        take_path(model, name="model")
    if isinstance(model, str | PathLike | ModelReference):
        return resolve_model(model)
    raise UsageError(
        f"A model to trace can't be of type {type(model).__name__}.",
        hint="Give its name, folder or GGUF file, or a pair of the loaded model and its tokenizer.",
    )


def take_pair(model: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Return a model in memory and its tokenizer; None for anything else."""
    if not isinstance(model, tuple | list) and not hasattr(model, "named_modules"):
        return None
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    kinds = (PreTrainedModel, PreTrainedTokenizerBase)
    pair: Any = model
    if not isinstance(model, tuple | list) or not (
        len(pair) == len(kinds) and all(map(isinstance, pair, kinds))
    ):
        raise UsageError(
            "A model in memory is traced with its tokenizer.",
            hint="Give a pair of the two: trace_model((model, tokenizer), prompts).",
        )
    if pair[0].training:
        raise UsageError(
            f"{type(pair[0]).__name__} is in training mode, in which it may route at random.",
            hint="Call model.eval() first.",
        )
    return pair[0], pair[1]


def refuse_loading(**options: object) -> None:
    """Refuse options of loading for a model that is in memory: those that are not None or False."""
    given = [name for name, value in options.items() if value not in (None, False)]
    if given:
        raise UsageError(
            f"{given[0]} is an option for loading a model, and this one is in memory.",
            hint="Leave it out, or name the checkpoint.",
        )
