"""Matrices of a model's experts, found by the structure of its modules, and modules left plain."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from functools import cache
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
# Matrices into the inner width, gate before up, and out of it: rows of all experts in one matrix.
_ROWS = ("w1", "v1", "w2")
# Experts that run as one module, on rows that come with ids or one after the other.
_RULES = (RoutingRule.RECEIVED, RoutingRule.SPARSE_SCORES)
# Experts that other rules read, in words.
_OTHERS = {
    RoutingRule.SEPARATE_EXPERTS: "each is a separate module",
    RoutingRule.ROUTER_CHOICE: "each is a separate module",
    RoutingRule.SORTED_ROWS: "their matrices are in two modules, which run on sorted rows",
    RoutingRule.RETRIEVAL: "they are rows of embeddings",
}
_CAST = re.compile(r"\.to\(\s*self\.(\w+)\.weight\.dtype\s*\)")
# Where linear layers within experts, if there are any, stay plain when experts shall.
_SEPARATE = (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)
_NO_PAIR = "they aren't a fused pair of matrices for each expert"
_LINEARS_ONLY = (
    "Give --no-quantize-experts (quantize_experts=False) to quantize linear layers only."
)


def find_matrices(module: nn.Module) -> tuple[ExpertMatrix, ...] | None:
    """Return the matrices of an experts module, the one out of the inner width last; None if unknown.

    Either it holds the fused pair: a stack of matrices into the experts' inner width,
    `gate_up_proj` or `up_proj`, and a stack out of it, `down_proj`. Apart from biases and norms, the
    module holds nothing else. Or its only child with parameters holds the rows of all experts in
    three matrices (DBRX).
    """
    return _find_pair(module) or _find_rows(module)


def _find_pair(module: nn.Module) -> tuple[ExpertMatrix, ...] | None:
    stacks = {n: p for n, p in module._parameters.items() if p is not None and p.dim() > 1}
    pair = {name for name in stacks if not name.endswith("_bias")}
    if pair not in _PAIRS or any(stacks[name].dim() != 3 for name in pair):
        return None
    up_name = next(iter(pair - {"down_proj"}))
    stated = getattr(module, "is_transposed", None)
    # Where the module states no order (Llama 4), both matrices fit together in one order at most,
    # unless there are no gates.
    orders = (False, True) if stated is None else (bool(stated),)
    for is_transposed in orders:
        up, down = (_describe(name, stacks[name], is_transposed) for name in (up_name, "down_proj"))
        inner = up.out_features // 2 if up_name == "gate_up_proj" else up.out_features
        if up.in_features == down.out_features and inner == down.in_features:
            return up, down
    return None


def _describe(name: str, stack: nn.Parameter, is_transposed: bool) -> ExpertMatrix:
    num_experts, first, second = stack.shape
    out_features, in_features = (second, first) if is_transposed else (first, second)
    return ExpertMatrix(name, num_experts, out_features, in_features, is_transposed)


def _find_rows(module: nn.Module) -> tuple[ExpertMatrix, ...] | None:
    owners = [name for name, child in module.named_children() if child._parameters]
    num_experts = getattr(module, "num_experts", None)
    if module._parameters or len(owners) != 1 or not isinstance(num_experts, int):
        return None
    stacks = module.get_submodule(owners[0])._parameters
    shapes = {parameter.shape for parameter in stacks.values() if parameter is not None}
    if set(stacks) != set(_ROWS) or len(shapes) != 1:
        return None
    shape = shapes.pop()
    if len(shape) != 2 or shape[0] % num_experts:
        return None
    inner, hidden = shape[0] // num_experts, shape[1]
    return tuple(
        ExpertMatrix(f"{owners[0]}.{name}", num_experts, hidden, inner, is_transposed=True)
        if name == "w2"
        else ExpertMatrix(f"{owners[0]}.{name}", num_experts, inner, hidden, is_transposed=False)
        for name in _ROWS
    )


def list_packable(
    model: PreTrainedModel, packing: Packing, *, found: FoundExperts | None = None
) -> list[tuple[str, nn.Module, tuple[ExpertMatrix, ...]]]:
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
        raise _refuse(name, describe_unread(model, found), _NO_PAIR)
    packable = []
    for layer in found.layers:
        module = model.get_submodule(layer.experts_path)
        matrices = find_matrices(module) if layer.rule in _RULES else None
        if layer.rule is RoutingRule.SPARSE_SCORES and _has_biases(module):
            # A row of zeros, which an expert isn't meant for, would become the bias.
            matrices = None
        if matrices is None:
            reason = _OTHERS.get(layer.rule, _NO_PAIR)
            raise _refuse(name, [f"{layer.experts_path} ({type(module).__name__})"], reason)
        for matrix in matrices:
            _check_width(layer.experts_path, matrix, packing)
        packable.append((layer.experts_path, module, matrices))
    return packable


def _has_biases(module: nn.Module) -> bool:
    return any(name.endswith("_bias") for name in module._parameters)


def _refuse(name: str, seen: Sequence[str], reason: str) -> UsageError:
    return UsageError(
        f"The experts of {name} can't be quantized: {reason}.",
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
    nothing is tied yet, layers that decide on experts or tokens, experts that are separate modules,
    and layers that wouldn't compute the same.
    """
    tied: dict[str, str] = model.all_tied_weights_keys
    *_, (last, _) = model.named_parameters(remove_duplicate=False)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    heads = [path for path, module in model.named_modules() if module is head]
    weights = [*tied, *tied.values(), last]
    left_out = [*(weight.removesuffix(".weight") for weight in weights), *heads]
    kept = model._keep_in_fp32_modules or ()
    found = found or find_experts(model)
    separate = [layer.experts_path for layer in found.layers if layer.rule in _SEPARATE]
    deciding, cast = _iter_plain_linears(model, found), _iter_cast_linears(model)
    plain = [*separate, *found.unreadable, *deciding, *cast]
    return list(dict.fromkeys([*left_out, *kept, *plain]))


def _iter_cast_linears(model: PreTrainedModel) -> Iterator[str]:
    """Yield the paths of linear layers whose input is converted to the dtype of their weights.

    In 4 bits that would be integers of 8 bits. Most of such code leaves out this case, or has the
    layers kept in float32; that of Switch does neither.
    """
    for path, module in model.named_modules():
        module_class: Any = type(module)
        for name in _list_cast(module_class):
            if isinstance(module._modules.get(name), nn.Linear):
                yield f"{path}.{name}" if path else name


@cache
def _list_cast(module_class: type[nn.Module]) -> tuple[str, ...]:
    """Return the children for whose dtype a class's forward converts, unless it knows of 4 bits."""
    try:
        source = inspect.getsource(module_class.forward)
    except (OSError, TypeError):
        return ()
    return () if "uint8" in source else tuple(_CAST.findall(source))


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
