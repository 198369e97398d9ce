"""The parameters that a family holds in a dtype of their own, whatever is asked for."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel


def read_dtype_plan(
    model: PreTrainedModel, dtype: torch.dtype | None
) -> list[tuple[re.Pattern[str], torch.dtype]]:
    """Return the paths of parameters that a family keeps in a dtype of their own, and that dtype.

    transformers holds them in it after loading (`PreTrainedModel._get_dtype_plan`), and all others
    in the one that the model's code makes them in, which usually is the model's.

    Args:
        model: The model.
        dtype: What is asked for; None if unknown, of which no plan follows.
    """
    if dtype is None:
        return []
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    return [(re.compile(pattern.replace("*", ".*")), kept) for pattern, kept in plan.items()]


def hold_as_loaded(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the parameters that a family keeps in a dtype of their own to it, as loading does."""
    plan = read_dtype_plan(model, dtype)
    for path, parameter in model.named_parameters() if plan else ():
        kept = next((kept for words, kept in plan if words.search(path)), parameter.dtype)
        if kept != parameter.dtype:
            parameter.data = parameter.data.to(kept)
