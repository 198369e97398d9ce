"""The inspection of a module in memory, without a look at its weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import build_model
from moetool.checkpoint.config import first_line
from moetool.checkpoint.subject import Subject
from moetool.errors import InputError, UsageError
from moetool.inspection.result import Inspection
from moetool.inspection.sources.from_skeleton import count_model, inspect_built
from moetool.inspection.sources.from_structure import inspect_structure
from moetool.inspection.sources.recorded_choices import Recording
from moetool.process.quiet import quiet_transformers
from moetool.process.turns import in_turn
from moetool.trace.model_counts import ModelCounts

if TYPE_CHECKING:
    import pandas as pd

# Hooks that a caller registered would see a forward without data.
_HOOKS = {
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
}
_COLLECTIONS = (dict, OrderedDict, list, set)

_Module = TypeVar("_Module", bound=nn.Module)


@in_turn()
@quiet_transformers()
def inspect_module(
    module: nn.Module,
    *,
    top_k: int | Mapping[str, int] | None = None,
    recording: Recording | pd.DataFrame | None = None,
) -> Inspection:
    """Return the inspection of a module in memory, which is left as it is.

    A model of transformers is counted as its configuration is, unless `top_k` or a recording is
    given. All others are counted by their structure.

    Args:
        module: A module with weights that are not quantized.
        top_k: Experts that a token chooses, of all routed layers or by path.
        recording: A recorder of the module, or its frame.

    Raises:
        InputError: It can't be copied.
        UsageError: It has quantized weights, or the other arguments don't fit it.
    """
    name = type(module).__name__
    if any(map(_is_quantized, module.modules())) or any(map(_is_packed, module.parameters())):
        raise UsageError(
            f"This {name} can't be inspected: its weights are quantized in memory.",
            hint="Give the name or folder of its checkpoint.",
        )
    if any(map(is_lazy, module.parameters())):
        raise UsageError(
            f"This {name} can't be inspected: some of its parameters have no shape yet.",
            hint="Call it once before.",
        )
    if top_k is not None and recording is not None:
        raise UsageError(
            "top_k and a recording can't be given together.",
            hint="Leave out one of them: a recording shows how many experts each token chose.",
        )
    if not isinstance(module, PreTrainedModel) or top_k is not None or recording is not None:
        return inspect_structure(
            module, copy=copy_without_weights, top_k=top_k, recording=recording
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


def _is_quantized(module: nn.Module) -> bool:
    return getattr(module, "quantization_method", None) is not None


def _is_packed(parameter: nn.Parameter) -> bool:
    """Return whether a parameter holds several weights in each of its numbers."""
    return parameter.dtype is torch.uint8 or hasattr(parameter, "quant_state")


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


def copy_without_weights(module: _Module) -> _Module:
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
