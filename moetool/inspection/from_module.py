"""The inspection of a model in memory, without a look at its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.checkpoint.config import first_line
from moetool.checkpoint.subject import Subject
from moetool.errors import InputError, UsageError
from moetool.inspection.from_skeleton import inspect_built
from moetool.inspection.result import Inspection
from moetool.quiet import quiet_transformers


@quiet_transformers()
def inspect_module(module: nn.Module) -> Inspection:
    """Return the inspection of a model in memory, which is left as it is.

    Args:
        module: A transformers model with weights that are not quantized.

    Raises:
        InputError: It can't be copied.
        UsageError: It is another kind of module.
    """
    name = type(module).__name__
    if not isinstance(module, PreTrainedModel):
        raise UsageError(
            f"A {name} can't be inspected: it is not a transformers model.",
            hint="Give a PreTrainedModel, or the name or folder of a checkpoint.",
        )
    if getattr(module, "quantization_method", None) is not None:
        raise UsageError(
            f"This {name} can't be inspected: its weights are quantized in memory.",
            hint="Give the name or folder of its checkpoint.",
        )
    try:
        skeleton = copy_without_weights(module)
    except Exception as error:
        raise InputError(
            f"This {name} can't be copied without its weights.",
            hint="Give the name or folder of its checkpoint.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    skeleton.eval()  # type: ignore[no-untyped-call]
    subject = Subject(
        model=getattr(module.config, "name_or_path", None) or name,
        config=_read_fields(module),
        label=f"the configuration of this {name}",
        headers=None,
        code=None,
        revision=None,
        notes=("Counted by the modules in memory; no file was read.",),
    )
    return inspect_built(subject, skeleton, files=None, dtype=module.dtype)


def copy_without_weights(module: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model on the meta device, whose parameters take no memory."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _read_fields(module: PreTrainedModel) -> Mapping[str, object]:
    fields: dict[str, object] = module.config.to_dict()
    return fields
