"""Decisions of experts that are rows of embeddings, found by product keys (Doge)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError
from moetool.tracing.recording.compiled import as_written
from moetool.tracing.recording.watch.decision import Decision, Tell


class RetrievalWatch:
    """Reads the rows that are looked up, and recomputes their weights from the router's scores.

    The rows are exact. The weights are the softmax of the sums of two key scores, as Doge has it;
    it is checked that they choose the same rows.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        del keep_scores  # Key scores are not one number for every expert.
        self.output_factor: float | None = 1.0
        self.router_path: str | None = f"{layer.block_path}.router_gate"
        self._layer = layer
        self._handles: list[RemovableHandle] = []
        self._key_scores: torch.Tensor | None = None

    def install(self, model: nn.Module, tell: Tell) -> None:
        """Place the hooks."""
        block: Any = model.get_submodule(self._layer.block_path)

        def keep(_router: nn.Module, _args: object, output: torch.Tensor) -> None:
            self._key_scores = output.detach()

        def hook(_table: nn.Module, args: tuple[Any, ...]) -> None:
            ids = args[0].flatten(0, -2)  # (num_slots, top_k)
            weights = self._recompute(ids, num_keys=block.num_keys, top_k=block.top_k)
            tell(self._layer, Decision(ids, weights))

        self._handles.append(block.router_gate.register_forward_hook(as_written(keep)))
        self._handles.append(block.down_embed.register_forward_pre_hook(as_written(hook)))

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._key_scores = None

    def _recompute(self, ids: torch.Tensor, *, num_keys: int, top_k: int) -> torch.Tensor:
        assert self._key_scores is not None
        scores = self._key_scores.view(2, ids.shape[0], -1)
        (scores_x, scores_y), (keys_x, keys_y) = scores.topk(num_keys, dim=-1)
        sums = (scores_x.unsqueeze(-1) + scores_y.unsqueeze(-2)).flatten(-2)
        experts = (keys_x.unsqueeze(-1) * num_keys + keys_y.unsqueeze(-2)).flatten(-2)
        chosen, places = sums.topk(top_k, dim=-1)
        if not torch.equal(experts.gather(-1, places), ids):
            raise UntraceableError(
                f"The rows that {self._layer.block_path} looks up do not follow from its scores.",
                hint="moetool can't record this version of the model.",
            )
        weights: torch.Tensor = chosen.softmax(dim=-1)
        return weights
