"""Copies of the decisions of a call under way, on the devices that made them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.watch.decision import Decision

# Float types that are kept as they are; others become float32.
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class LayerStack:
    """One tensor for each of a kind of values, with a row for each layer.

    Attributes:
        tensors: Each # (num_rows, num_slots, …)
        rows: The rows of each tensor, each # (num_slots, …)
        layers: Those whose values are in the first rows.
    """

    tensors: tuple[torch.Tensor, ...]
    rows: list[tuple[torch.Tensor, ...]]
    layers: list[MoeLayer] = field(default_factory=list)

    @classmethod
    def empty(cls, num_layers: int, like: tuple[torch.Tensor, ...]) -> LayerStack:
        """Return rows for the values of some layers, which have not arrived."""
        tensors = tuple(
            torch.empty((num_layers, *value.shape), dtype=_choose_dtype(value), device=value.device)
            for value in like
        )
        unbound = zip(*(tensor.unbind(0) for tensor in tensors), strict=True)
        return cls(tensors, list(unbound))

    def copy(self, layer: MoeLayer, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Copy a layer's values into the next row, and return the row."""
        row = self.rows[len(self.layers)]
        self.layers.append(layer)
        for target, value in zip(row, values, strict=True):
            target.copy_(value)
        return row

    @property
    def filled(self) -> tuple[torch.Tensor, ...]:
        """The rows that hold values, of each tensor."""
        return tuple(tensor[: len(self.layers)] for tensor in self.tensors)


class DecisionBuffers:
    """The decisions of a call under way, each copied as soon as it is seen.

    Copies, because blocks may go on to change these tensors in place. Layers whose decisions have the
    same shape and device share tensors: a GPU waits for the number of operations, not for their size.

    Attributes:
        decisions: By layer, views of the copies.
        stacks: Ids and weights of layers alike, `(num_layers, num_slots, top_k)`.
        scores: Scores of layers alike, `(num_layers, num_slots, num_scores)`.

    Args:
        num_layers: Most layers that a call can pass.
    """

    def __init__(self, num_layers: int) -> None:
        self.decisions: dict[MoeLayer, Decision] = {}
        self.stacks: dict[object, LayerStack] = {}
        self.scores: dict[object, LayerStack] = {}
        self._num_layers = num_layers

    @torch.no_grad()
    def copy(self, layer: MoeLayer, decision: Decision) -> None:
        """Take a layer's decision."""
        ids, weights, scores = decision
        # Ids are told apart by 32 bits, whatever the model uses.
        kind = (ids.device, ids.shape[1], weights.dtype)
        row = self._copy(self.stacks, kind, layer, (ids, weights))
        kept = None
        if scores is not None:
            kind = (scores.device, scores.shape[1], scores.dtype)
            (kept,) = self._copy(self.scores, kind, layer, (scores,))
        self.decisions[layer] = Decision(row[0], row[1], kept)

    def _copy(
        self,
        stacks: dict[object, LayerStack],
        kind: object,
        layer: MoeLayer,
        values: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        stack = stacks.get(kind)
        if stack is None:
            stack = stacks[kind] = LayerStack.empty(self._num_layers, values)
        return stack.copy(layer, values)


def _choose_dtype(value: torch.Tensor) -> torch.dtype:
    if not value.is_floating_point():
        return torch.int32
    return value.dtype if value.dtype in _KEPT else torch.float32
