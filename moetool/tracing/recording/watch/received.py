"""Decisions that the experts module receives as ids and weights, as transformers 5 passes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report, find_decision
from moetool.tracing.recording.watch.output_factor import OutputFactorMeter
from moetool.tracing.recording.watch.routers import RouterFinder
from moetool.tracing.recording.watch.shared_experts import SharedExpertsCheck


class ReceivedWatch:
    """Reads ids and weights where they enter the experts module."""

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        self._layer = layer
        self._num_experts = layer.num_experts + layer.num_identity_experts
        self._keep_scores = keep_scores
        self._router: RouterFinder | None = None
        self._meter: OutputFactorMeter | None = None

    @property
    def router_path(self) -> str | None:
        """Module path of the router, once a call was seen."""
        return self._router.router_path if self._router else None

    @property
    def output_factor(self) -> float | None:
        """Factor by which the block multiplies the experts' sum, once a call was seen."""
        return self._meter.factor if self._meter else None

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        router = RouterFinder(model, self._layer, keep_scores=self._keep_scores)
        hooks.on_removal(router.remove)
        self._router = router
        self._meter = OutputFactorMeter(model, self._layer)
        hooks.on_removal(self._meter.remove)
        path = self._layer.experts_path
        experts = model.get_submodule(path)
        check = SharedExpertsCheck(experts, path=path)
        hooks.on_removal(check.remove)

        def hook(_experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = (*args, *kwargs.values()) if kwargs else args
            ids, weights = find_decision(values, path=path)
            if not check.is_done:
                check.begin(ids, weights)
            router.identify(ids, weights)
            decision = Decision(self._mark_skipped(ids, weights), weights, router.scores)
            report(self._layer, decision)

        hooks.before(experts, hook, with_kwargs=True)
        if not check.is_done:
            hooks.after(experts, check.end)

    def _mark_skipped(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the ids with -1 where the router let the token skip the experts.

        A router with a class beyond its experts (Zaya) passes a skipped token on as expert 0 with
        weight 0.

        Args:
            ids: # (num_slots, top_k)
            weights: # (num_slots, top_k)
        """
        assert self._router is not None
        num_classes = self._router.num_classes
        if num_classes is None or num_classes <= self._num_experts:
            return ids
        return ids.masked_fill(weights == 0, -1)
