"""The way in which a routed layer chooses its experts, inferred from a trial.

What a router does with its scores is up to its code, and configurations have many names for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from moetool.anatomy.config_fields import read_count
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.router_trial import TrialDecision, run_router_trial
from moetool.anatomy.routing.score_functions import SCORE_FUNCTIONS, find_function, is_constant

_GROUPS = ("num_group", "n_group", "num_expert_group")
_CHOSEN_GROUPS = ("topk_group",)
_SELECTION_BIAS = re.compile(r"correction_bias$|expert_bias$|balancing_biases$|router_bias$")
_HASH_TABLE = re.compile(r"tid2eid$")


@dataclass(frozen=True)
class RoutingStyle:
    """The way in which a routed layer chooses.

    Attributes:
        scores: The function that turns the router's scores into weights: `softmax`, `sigmoid` or
            `sqrt(softplus)`; None if it could not be inferred.
        is_normalized: Whether the weights of a token's experts have the same sum for all tokens;
            None if unknown.
        scale: That sum if they are normalised, else the factor that they are multiplied by; None
            if unknown.
        has_selection_bias: Whether a bias of each expert counts in the choice but not in the weights.
        num_groups: Groups of experts, of which only some are chosen from; 1 if there are no groups.
        num_chosen_groups: Groups that are chosen from.
        is_hashed: Whether the experts are looked up by the token's id.
        capacity: Most tokens of a sequence that an expert takes; None if there is no limit.
    """

    scores: str | None
    is_normalized: bool | None
    scale: float | None
    has_selection_bias: bool
    num_groups: int
    num_chosen_groups: int
    is_hashed: bool
    capacity: int | None


def find_routing_style(model: nn.Module, layer: MoeLayer, *, hidden_size: int) -> RoutingStyle:
    """Return the way in which a routed layer chooses.

    Args:
        model: The skeleton that the layer was found in.
        layer: The layer, as the finder describes it.
        hidden_size: Width of the hidden states that the block takes.
    """
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    decision = run_router_trial(block, experts, layer, hidden_size=hidden_size)
    name, is_normalized, scale = _explain(decision) if decision else (None, None, None)
    in_experts = set(experts.modules())
    modules = [module for module in block.modules() if module not in in_experts]
    modules = [block, *modules] if block is experts else modules
    names = [name for name, _ in _list_state(block)]
    num_groups, num_chosen_groups = _read_groups(modules, decision, layer.num_experts)
    is_hashed = any(_HASH_TABLE.search(name) for name in names)
    return RoutingStyle(
        scores=name,
        is_normalized=is_normalized,
        scale=scale,
        has_selection_bias=not is_hashed and any(_SELECTION_BIAS.search(name) for name in names),
        num_groups=num_groups,
        num_chosen_groups=num_chosen_groups,
        is_hashed=is_hashed,
        capacity=_read(modules, ("expert_capacity",)),
    )


def _read_groups(
    modules: list[nn.Module], decision: TrialDecision | None, num_experts: int
) -> tuple[int, int]:
    """Return how many groups of experts there are, and from how many of them a token chooses.

    Some routers keep both numbers without using them, so the choice itself decides.
    """
    num_groups, chosen = _read(modules, _GROUPS) or 1, _read(modules, _CHOSEN_GROUPS) or 1
    if num_groups == 1 or chosen >= num_groups or decision is None or num_experts % num_groups:
        return 1, 1
    groups = decision.experts // (num_experts // num_groups)
    most = max(len(set(token)) for token in groups.tolist())
    return (num_groups, chosen) if most <= chosen else (1, 1)


def _explain(decision: TrialDecision) -> tuple[str | None, bool | None, float | None]:
    """Return the score function, whether the weights are normalised, and their scale."""
    name = find_function(
        SCORE_FUNCTIONS,
        scores=decision.scores,
        experts=decision.experts,
        weights=decision.weights,
    )
    if name is None:
        return None, None, None
    values = np.take_along_axis(SCORE_FUNCTIONS[name](decision.scores), decision.experts, axis=1)
    ratios = (decision.weights / values).mean(axis=1)
    sums = decision.weights.sum(axis=1)
    # Some routers return probabilities as their scores.
    is_softmax = name == "identity" and is_constant(decision.scores.sum(axis=1))
    name = "softmax" if is_softmax else name
    if is_constant(ratios) and not is_constant(sums):
        return name, False, round(float(np.median(ratios)), 4)
    if is_constant(sums):
        return name, True, round(float(np.median(sums)), 4)
    return name, None, None


def _list_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _read(modules: list[nn.Module], names: tuple[str, ...]) -> int | None:
    numbers = (read_count(module, *names) for module in modules)
    return next((number for number in numbers if number is not None), None)
