"""Parameters that a family keeps in a fixed dtype, regardless of the dtype asked for."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel


def read_dtype_plan(
    model: PreTrainedModel, dtype: torch.dtype | None
) -> list[tuple[re.Pattern[str], torch.dtype]]:
    """Return the paths of parameters that a family keeps in a fixed dtype, and that dtype.

    transformers keeps them in it after loading (`PreTrainedModel._get_dtype_plan`). All others are in
    the dtype in which the model's code creates them, usually that of the model.

    Args:
        model: A transformers model.
        dtype: The dtype asked for; None if unknown, which gives an empty plan.
    """
    if dtype is None:
        return []
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    return [(re.compile(pattern.replace("*", ".*")), kept) for pattern, kept in plan.items()]


def hold_as_loaded(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the parameters that a family keeps in a fixed dtype, as loading does."""
    plan = read_dtype_plan(model, dtype)
    for path, parameter in model.named_parameters() if plan else ():
        kept = next((kept for words, kept in plan if words.search(path)), parameter.dtype)
        if kept != parameter.dtype:
            parameter.data = parameter.data.to(kept)
