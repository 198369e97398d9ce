"""Measures the experts' outputs of every routed layer while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.saliency.outputs import ExpertsCall, run_separate_experts
from moetool.tracing.recording.saliency.sums import SaliencySums
from moetool.tracing.recording.scopes import OPTIONAL_STACKS
from moetool.tracing.recording.watch.decision import Decision, find_decision
from moetool.tracing.recording.watch.separate.block import find_block

_REFUSED = {
    RoutingRule.SPARSE_SCORES: "its experts receive inputs that are multiplied by the weights, so "
    "that no expert's output before weighting exists",
    RoutingRule.SORTED_ROWS: "its experts are layers that run on sorted rows, and are never called "
    "on their own",
    RoutingRule.OPERATIONS: "its experts are known by their weights alone, and are never called "
    "separately",
    RoutingRule.ROUTER_CHOICE: "its experts don't carry out what the router chose",
    RoutingRule.RETRIEVAL: "its experts are rows of embeddings",
}

# The slots of real tokens in the call under way, and a layer's decision for all slots.
FindCall = Callable[[MoeLayer], tuple[torch.Tensor, Decision]]


def check_saliency(name: str, layers: Sequence[MoeLayer]) -> None:
    """Check that the experts' own outputs can be recomputed exactly.

    Args:
        name: The model's class.
        layers: Those to record.

    Raises:
        UntraceableError: They can't, or two layers have the same number.
    """
    layers = list_measured(layers)
    for layer in layers:
        if layer.rule in _REFUSED:
            raise UntraceableError(
                f"Can't record the saliency of {name}: {_REFUSED[layer.rule]}.",
                hint="Leave out --saliency: the decisions themselves can be recorded.",
            )
    numbers = [layer.layer for layer in layers]
    if len(set(numbers)) < len(numbers):
        raise UntraceableError(
            f"Can't record the saliency of {name}: it routes more than once in a layer, and REAP's "
            "file names layers by number alone.",
            hint="Choose layers that route once with --layers.",
        )


def list_measured(layers: Iterable[MoeLayer]) -> list[MoeLayer]:
    """Return the layers whose outputs are measured: those that every text passes."""
    return [layer for layer in layers if layer.stack not in OPTIONAL_STACKS]


class SaliencyMeter:
    """Runs each layer's chosen experts once more after each call, and adds up the norms.

    The model's own result stays as it is. The cost is one more pass of the experts.

    Attributes:
        sums: By layer, those over the calls so far.
    """

    def __init__(self, layers: Iterable[MoeLayer]) -> None:
        self.sums = {
            layer: SaliencySums.empty(layer.num_experts) for layer in list_measured(layers)
        }
        self._hidden: dict[MoeLayer, torch.Tensor] = {}

    def install(self, model: nn.Module, find_call: FindCall, hooks: Hooks) -> None:
        """Place hooks on all layers, after those of the watches."""
        for layer in self.sums:
            if layer.rule is RoutingRule.RECEIVED:
                experts = model.get_submodule(layer.experts_path)
                hooks.after(experts, self._measure(layer, find_call), with_kwargs=True)
                continue
            block = find_block(model, layer)
            experts_by_id = [members[0].module for members in block.experts]
            hooks.before(block.module, self._keep_hidden(layer), with_kwargs=True)
            hooks.after(block.module, self._measure_separate(layer, find_call, experts_by_id))
        hooks.on_removal(self._hidden.clear)

    def _measure(self, layer: MoeLayer, find_call: FindCall) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            ids, weights = find_decision([*args, *kwargs.values()], path=layer.experts_path)
            call = ExpertsCall(layer.experts_path, module, args, kwargs, ids, weights, output)
            slots, decision = find_call(layer)
            self._add(layer, decision, slots, call.iter_outputs(slots.to(ids.device)))

        return hook

    def _keep_hidden(self, layer: MoeLayer) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
            hidden = next(tensors)
            # A copy: the block may change it in place.
            self._hidden[layer] = hidden.detach().flatten(0, -2).clone()

        return hook

    def _measure_separate(
        self, layer: MoeLayer, find_call: FindCall, experts: list[nn.Module]
    ) -> Any:
        def hook(_module: nn.Module, _args: object, _output: object) -> None:
            slots, decision = find_call(layer)
            hidden = self._hidden.pop(layer)
            slots = slots.to(hidden.device)
            ids = decision.experts[slots]
            self._add(layer, decision, slots, run_separate_experts(experts, hidden[slots], ids))

        return hook

    def _add(
        self,
        layer: MoeLayer,
        decision: Decision,
        slots: torch.Tensor,
        outputs: Iterable[torch.Tensor],
    ) -> None:
        """Add the outputs of a call's real tokens to the sums."""
        norms, largest = [], []
        for output in outputs:  # (num_tokens, hidden_size)
            norms.append(torch.linalg.vector_norm(output, dim=1))
            largest.append(output.amax(dim=1))
        ids = decision.experts[slots].cpu().numpy().astype(np.int64)  # (num_tokens, top_k)
        # Identity experts come last and have no parameters to prune.
        ran = (ids >= 0) & (ids < layer.num_experts)
        weights = decision.weights[slots].double().cpu().numpy()
        self.sums[layer].add(
            ids[ran],
            weights[ran],
            torch.stack(norms, dim=1).double().cpu().numpy()[ran],
            torch.stack(largest, dim=1).float().cpu().numpy()[ran],
            num_tokens=len(ids),
        )
