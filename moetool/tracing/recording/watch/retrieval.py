"""Decisions of experts that are rows of embeddings, found by product keys (Doge)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import join_path
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report


class RetrievalWatch:
    """Reads the rows that are looked up, and recomputes their weights from the router's scores.

    The rows are exact. The weights are the softmax over sums of two key scores, as in Doge's own
    code, after checking that these sums choose the same rows.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        del keep_scores  # Key scores are not one number per expert.
        self.output_factor: float | None = 1.0
        self.router_path: str | None = join_path(layer.block_path, "router_gate")
        self._layer = layer
        self._key_scores: torch.Tensor | None = None

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        block: Any = model.get_submodule(self._layer.block_path)

        def keep(_router: nn.Module, _args: object, output: torch.Tensor) -> None:
            self._key_scores = output.detach()  # (..., 2 * num_keys)

        def hook(_table: nn.Module, args: tuple[Any, ...]) -> None:
            ids = args[0].flatten(0, -2)  # (num_slots, top_k)
            weights = self._recompute(ids, num_keys=block.num_keys, top_k=block.top_k)
            report(self._layer, Decision(ids, weights))

        hooks.after(block.router_gate, keep)
        hooks.before(block.down_embed, hook)
        hooks.on_removal(self._forget)

    def _forget(self) -> None:
        self._key_scores = None

    def _recompute(self, ids: torch.Tensor, *, num_keys: int, top_k: int) -> torch.Tensor:
        """Return the weights of the rows that were looked up, both # (num_slots, top_k)."""
        assert self._key_scores is not None
        scores = self._key_scores.view(2, ids.shape[0], -1)  # (2, num_slots, num_keys)
        # The keys of both halves, best first, each (num_slots, num_keys).
        (scores_x, scores_y), (keys_x, keys_y) = scores.topk(num_keys, dim=-1)
        # Of every pair of keys, its score and the row it names, both (num_slots, num_keys ** 2).
        sums = (scores_x.unsqueeze(-1) + scores_y.unsqueeze(-2)).flatten(-2)
        experts = (keys_x.unsqueeze(-1) * num_keys + keys_y.unsqueeze(-2)).flatten(-2)
        chosen, pairs = sums.topk(top_k, dim=-1)  # (num_slots, top_k)
        if not torch.equal(experts.gather(-1, pairs), ids):
            raise UntraceableError(
                f"The rows that {self._layer.block_path} looks up do not follow from its scores.",
                hint="moetool can't record this version of the model.",
            )
        weights: torch.Tensor = chosen.softmax(dim=-1)
        return weights
