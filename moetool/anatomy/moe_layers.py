"""From a model's modules to its routed layers, by structure alone: no table of families."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from moetool.errors import DenseModelError, UntraceableError

# A word in a module's path, and the stack it means; the first that occurs decides.
_STACK_OF_WORD = {
    "vision": "vision",
    "visual": "vision",
    "audio": "audio",
    "talker": "talker",
    "encoder": "encoder",
}


@dataclass(frozen=True)
class MoeLayer:
    """One place in a model where each token is routed to experts.

    Attributes:
        stack: `decoder` in ordinary models; see the trace's `stack` column.
        layer: The model's own layer index, not the running number among routed layers.
        experts_path: Module path of the experts module, which receives ids and weights.
        num_experts: Routed experts. Ids from here on are identity experts.
        num_identity_experts: Experts that return their input unchanged.
    """

    stack: str
    layer: int
    experts_path: str
    num_experts: int
    num_identity_experts: int

    @property
    def block_path(self) -> str:
        """Module path of the parent of the experts module, whose other children hold the router."""
        return self.experts_path.rpartition(".")[0]


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """Return every routed layer of a model, in the model's own order of modules.

    A routed layer is known by its experts module: one that takes hidden states, expert ids and
    routing weights, and holds the experts' weights. This is the contract of transformers 5.

    Raises:
        DenseModelError: The model has no routed experts.
        UntraceableError: It has routed experts, or what looks like them, of another make.
    """
    paths = [path for path, module in model.named_modules() if receives_decisions(module)]
    strangers = list(_find_other_experts(model, known=paths))
    name = type(model).__name__
    if strangers:
        raise UntraceableError(
            f"Can't trace {name} exactly: some of its experts do not receive ids and weights.",
            hint="Trace a model whose experts module takes (hidden_states, ids, weights).",
            facts=[f"seen: {path} ({type(module).__name__})" for path, module in strangers[:2]],
        )
    if not paths:
        raise DenseModelError(
            f"{name} is a dense model: it has no router to trace.",
            hint="Name a Mixture-of-Experts model, for example 'demo'.",
        )
    return _tell_apart([_describe(path, model.get_submodule(path)) for path in paths])


def select_layers(found: list[MoeLayer], numbers: Collection[int] | None) -> tuple[MoeLayer, ...]:
    """Return the routed layers with the given layer numbers; all of them for None.

    Raises:
        ValueError: A number has no routed layer; the message names those that have.
    """
    if numbers is None:
        return tuple(found)
    routed = sorted({layer.layer for layer in found})
    wrong = sorted(set(numbers) - set(routed))
    if wrong:
        raise ValueError(f"layer {wrong[0]} has no routed experts; these have: {routed}")
    return tuple(layer for layer in found if layer.layer in numbers)


def receives_decisions(module: nn.Module) -> bool:
    """Return whether a module is an experts module called with hidden states, ids and weights."""
    # Containers of separate expert modules take dispatch masks of other shapes (Switch, NLLB).
    if isinstance(module, nn.ModuleDict | nn.ModuleList) or _num_inputs(module) != 3:
        return False
    has_own_experts = isinstance(getattr(module, "num_experts", None), int) and type(
        module
    ).__name__.endswith("Experts")
    return has_own_experts or len(_stacked_parameters(module)) >= 2


def _num_inputs(module: nn.Module) -> int:
    """Return how many named parameters the module's forward takes."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(parameter.kind not in kinds for parameter in parameters)


def _stacked_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the module's own parameters that stack one matrix per expert."""
    return [p for p in module.parameters(recurse=False) if p.dim() == 3]


def _describe(path: str, experts: nn.Module) -> MoeLayer:
    stacked = [p.shape[0] for p in _stacked_parameters(experts)]
    num_experts = getattr(experts, "num_experts", None)
    # LongCat-Flash allocates one of its two matrices for the identity experts as well.
    num_routed = num_experts if isinstance(num_experts, int) else min(stacked)
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", path)
    return MoeLayer(
        stack=next((stack for word, stack in _STACK_OF_WORD.items() if word in path), "decoder"),
        layer=int(numbers[0]) if numbers else 0,
        experts_path=path,
        num_experts=num_routed,
        num_identity_experts=max([num_routed, *stacked]) - num_routed,
    )


def _tell_apart(layers: list[MoeLayer]) -> list[MoeLayer]:
    """Extend the stack of layers that share a stack and a number by what tells them apart."""
    shared = Counter((layer.stack, layer.layer) for layer in layers)
    named = [
        replace(layer, stack=f"{layer.stack}.{layer.block_path.rpartition('.')[2]}")
        if shared[layer.stack, layer.layer] > 1
        else layer
        for layer in layers
    ]
    ambiguous = [
        key for key, n in Counter((layer.stack, layer.layer) for layer in named).items() if n > 1
    ]
    if ambiguous:
        raise UntraceableError(
            f"Layer {ambiguous[0][1]} routes more than once, and nothing names the routings apart.",
            hint="Trace the sub-model you are interested in with RoutingRecorder.",
            facts=[
                f"seen: {layer.experts_path}" for layer in named if layer.stack == ambiguous[0][0]
            ][:3],
        )
    return named


def _find_other_experts(
    model: nn.Module, *, known: Iterable[str]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that hold experts and belong to none of the known experts modules.

    A module belongs to a known one as its ancestor or as a part of the same block: routers and
    blocks carry a `num_experts` of their own.
    """
    known = list(known)
    blocks = [path.rpartition(".")[0] for path in known]
    for path, module in model.named_modules():
        if not path or not _holds_experts(path, module):
            continue
        is_ancestor = any(other.startswith(f"{path}.") for other in known)
        in_block = any(path == block or path.startswith(f"{block}.") for block in blocks)
        if not (is_ancestor or in_block):
            yield path, module


def _holds_experts(path: str, module: nn.Module) -> bool:
    num_experts = getattr(module, "num_experts", None)
    if isinstance(num_experts, int) and num_experts > 1:
        return True
    return (
        isinstance(module, nn.ModuleDict | nn.ModuleList)
        and path.rpartition(".")[2] == "experts"
        and len(module) > 1
    )
