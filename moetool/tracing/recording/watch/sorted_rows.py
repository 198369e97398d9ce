"""Decisions read from the permutation by which a router sorts rows by expert (JetMoE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import is_grouped_linear
from moetool.anatomy.routing.walk import join_path
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report
from moetool.tracing.recording.watch.routers import find_scores


class SortedRowsWatch:
    """Inverts the router's permutation: sorted row i is assignment `permutation[i]` of the call.

    The router returns the permutation of all `num_slots * top_k` assignments, each sorted row's
    weight, and how many rows each expert has. The decision is reported when the first grouped
    linear layer receives exactly these numbers of rows.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.output_factor: float | None = 1.0
        self.router_path: str | None = None
        self._layer = layer
        self._keep_scores = keep_scores
        self._outputs: dict[str, tuple[Any, ...]] = {}

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        block = model.get_submodule(self._layer.block_path)
        grouped = [child for child in block.children() if is_grouped_linear(child)]
        for name, child in block.named_children():
            if child not in grouped:
                hooks.after(child, self._keep_output(join_path(self._layer.block_path, name)))

        def hook(_linear: nn.Module, args: tuple[Any, ...]) -> None:
            report(self._layer, self._read(rows=args[0], sizes=args[1]))

        hooks.before(grouped[0], hook)
        hooks.on_removal(self._outputs.clear)

    def _keep_output(self, path: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, tuple):
                self._outputs[path] = output

        return hook

    def _read(self, *, rows: torch.Tensor, sizes: Any) -> Decision:
        """Return the decision behind rows that are sorted by expert.

        Args:
            rows: # (num_slots * top_k, hidden_size)
            sizes: Number of rows of each expert. # (num_experts,)
        """
        for path, output in self._outputs.items():
            tensors = [value for value in output if isinstance(value, torch.Tensor)]
            flat = [value for value in tensors if value.shape == rows.shape[:1]]
            permutation = next((value for value in flat if _is_permutation(value)), None)
            weights = next((value for value in flat if value.is_floating_point()), None)
            has_sizes = any(value is sizes for value in output)
            if permutation is None or weights is None or not has_sizes:
                continue
            self.router_path = path
            counts = torch.as_tensor(sizes, device=rows.device)
            # The expert of each sorted row. # (num_slots * top_k,)
            expert = torch.arange(len(counts), device=rows.device).repeat_interleave(counts)
            num_slots = next(value.shape[0] for value in tensors if value.dim() == 2)
            self._outputs.clear()
            return Decision(
                torch.empty_like(expert).scatter_(0, permutation, expert).view(num_slots, -1),
                torch.empty_like(weights).scatter_(0, permutation, weights).view(num_slots, -1),
                find_scores(output, num_slots, num_experts=self._layer.num_experts)
                if self._keep_scores
                else None,
            )
        raise UntraceableError(
            f"No router sorted the rows that {self._layer.experts_path} received.",
            hint="moetool can't record this kind of experts.",
        )


def _is_permutation(value: torch.Tensor) -> bool:
    return not value.is_floating_point() and bool(
        (value.sort().values == torch.arange(len(value), device=value.device)).all()
    )
