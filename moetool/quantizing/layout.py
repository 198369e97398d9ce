"""Matrices of a model's experts, found by the structure of its modules, and modules left plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from moetool.anatomy.components import Component
from moetool.anatomy.routing.moe_layers import FoundExperts, describe_unread, find_experts
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.skeleton.placement import Placement
from moetool.errors import DenseModelError, UsageError
from moetool.quantizing.packing import ExpertMatrix, Packing

_PAIRS = ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"})
_LINEARS_ONLY = (
    "Give --no-quantize-experts (quantize_experts=False) to quantize linear layers only."
)


def find_matrices(module: nn.Module) -> tuple[ExpertMatrix, ExpertMatrix] | None:
    """Return the matrices of an experts module that holds the fused pair; None for any other.

    The pair is a stack of matrices into the experts' inner width, `gate_up_proj` or `up_proj`, and
    a stack out of it, `down_proj`. Apart from biases and norms, the module holds nothing else.
    """
    stacks = {n: p for n, p in module._parameters.items() if p is not None and p.dim() > 1}
    pair = {name for name in stacks if not name.endswith("_bias")}
    if pair not in _PAIRS or any(stacks[name].dim() != 3 for name in pair):
        return None
    is_transposed = bool(getattr(module, "is_transposed", False))
    up_name = next(iter(pair - {"down_proj"}))
    up, down = (_describe(name, stacks[name], is_transposed) for name in (up_name, "down_proj"))
    inner = up.out_features // 2 if up_name == "gate_up_proj" else up.out_features
    if up.in_features != down.out_features or inner != down.in_features:
        return None
    return up, down


def _describe(name: str, stack: nn.Parameter, is_transposed: bool) -> ExpertMatrix:
    num_experts, first, second = stack.shape
    out_features, in_features = (second, first) if is_transposed else (first, second)
    return ExpertMatrix(name, num_experts, out_features, in_features, is_transposed)


def list_packable(
    model: PreTrainedModel, packing: Packing, *, found: FoundExperts | None = None
) -> list[tuple[str, nn.Module, tuple[ExpertMatrix, ExpertMatrix]]]:
    """Return the path, module and matrices of all experts of a model.

    Args:
        model: With plain weights, also on the meta device.
        packing: The format that they shall have.
        found: Its routed experts, if they are known.

    Raises:
        DenseModelError: The model has no routed experts.
        UsageError: Some of its experts aren't the fused pair, or too narrow for the format.
    """
    found = found or find_experts(model)
    name = type(model).__name__
    if found.is_dense:
        raise DenseModelError(
            f"{name} is a dense model: it has no routed experts to quantize.", hint=_LINEARS_ONLY
        )
    if not found.are_all_read:
        raise _refuse(name, describe_unread(model, found))
    packable = []
    for layer in found.layers:
        module = model.get_submodule(layer.experts_path)
        matrices = find_matrices(module) if layer.rule is RoutingRule.RECEIVED else None
        if matrices is None:
            raise _refuse(name, [f"{layer.experts_path} ({type(module).__name__})"])
        for matrix in matrices:
            _check_width(layer.experts_path, matrix, packing)
        packable.append((layer.experts_path, module, matrices))
    return packable


def _refuse(name: str, seen: Sequence[str]) -> UsageError:
    return UsageError(
        f"The experts of {name} can't be quantized: they aren't a fused pair of matrices for each "
        "expert.",
        hint=_LINEARS_ONLY,
        facts=[f"seen: {words}" for words in seen[:2]],
    )


def _check_width(path: str, matrix: ExpertMatrix, packing: Packing) -> None:
    if packing.is_4bit and matrix.in_features % 2:
        raise UsageError(
            f"{path}.{matrix.name} has {matrix.in_features:,} inputs, an odd number: two 4-bit "
            "weights share a byte.",
            hint="Use --quantization int8, or --no-quantize-experts.",
        )


def list_modules_left_out(
    model: PreTrainedModel, *, found: FoundExperts | None = None
) -> list[str]:
    """Return the paths of modules in which no linear layer is quantized.

    These are the ones that transformers' `get_keys_to_not_convert` finds while it loads a model, when
    nothing is tied yet, and layers that decide on experts or tokens.
    """
    tied: dict[str, str] = model.all_tied_weights_keys
    *_, (last, _) = model.named_parameters(remove_duplicate=False)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    heads = [path for path, module in model.named_modules() if module is head]
    weights = [*tied, *tied.values(), last]
    left_out = [*(weight.removesuffix(".weight") for weight in weights), *heads]
    kept = model._keep_in_fp32_modules or ()
    plain = _iter_plain_linears(model, found or find_experts(model))
    return list(dict.fromkeys([*left_out, *kept, *plain]))


def list_converted_linears(
    model: PreTrainedModel, *, found: FoundExperts | None = None
) -> list[tuple[str, Any]]:
    """Return the path and module of each linear layer that bitsandbytes quantizes.

    Transformers' `replace_with_bnb_linear` replaces the same.
    """
    left_out = list_modules_left_out(model, found=found)
    return [
        (path, module)
        for path, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D))
        and should_convert_module(path, left_out)
    ]


def _iter_plain_linears(model: PreTrainedModel, found: FoundExperts) -> Iterator[str]:
    """Yield the paths of linear layers that decide on experts or tokens.

    These are routers, gates of shared experts, and heads. An error in a router changes which experts
    run. Most routers of transformers aren't linear layers, which bitsandbytes leaves alone anyway,
    and most heads it leaves alone too, but not those of models around language models.
    """
    placement = Placement(model, found.layers, found.unreadable)
    for path, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        component = placement.place(f"{path}.weight").component
        is_gate = component is Component.SHARED_EXPERTS and module.out_features == 1
        if is_gate or component in (Component.ROUTER, Component.LM_HEAD):
            yield path
