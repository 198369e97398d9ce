"""The inspection of a model in memory, without a look at its weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import build_model
from moetool.checkpoint.config import first_line
from moetool.checkpoint.subject import Subject
from moetool.errors import InputError, UsageError
from moetool.inspection.result import Inspection
from moetool.inspection.sources.from_skeleton import count_model, inspect_built
from moetool.process.quiet import quiet_transformers
from moetool.trace.model_counts import ModelCounts

# Hooks that a caller registered would see a forward without data.
_HOOKS = {
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
}
_COLLECTIONS = (dict, OrderedDict, list, set)


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
    if _is_quantized(module):
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


def count_module(module: PreTrainedModel) -> tuple[ModelCounts, tuple[str, ...]]:
    """Return the counts of a model in memory, which is left as it is, and notes on unknown ones.

    It never fails, see `count_model`. A model with quantized weights is counted as its
    configuration builds it.
    """
    return count_model(partial(_make_skeleton, module))


def _make_skeleton(module: PreTrainedModel) -> PreTrainedModel:
    # Code that replaces a forward, as that of accelerate and of torch.compile, would compute.
    is_replaced = any("forward" in vars(each) for each in module.modules())
    if _is_quantized(module) or is_replaced:
        return build_model(type(module), copy.deepcopy(module.config), dtype=None, device="meta")
    return copy_without_weights(module)


def _is_quantized(module: PreTrainedModel) -> bool:
    return getattr(module, "quantization_method", None) is not None


class _OnMeta(TorchFunctionMode):
    """Copies tensors without their values."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            return torch.empty_like(args[0], device="meta", requires_grad=False)
        return func(*args, **(kwargs or {}))


def copy_without_weights(module: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model on the meta device, without its weights and without hooks."""
    memo: dict[int, object] = {}
    for each in module.modules():
        for name, value in vars(each).items():
            # A module has a dozen empty collections, which take deepcopy most of its time.
            if name in _HOOKS or (type(value) in _COLLECTIONS and not value):
                memo[id(value)] = type(value)()
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    with _OnMeta():
        copied = copy.deepcopy(module, memo)
    for each in copied.modules():
        # transformers then installs its own hooks again when it needs them.
        vars(each).pop("_output_capturing_hooks_installed", None)
    return copied


def _read_fields(module: PreTrainedModel) -> Mapping[str, object]:
    fields: dict[str, object] = module.config.to_dict()
    return fields
