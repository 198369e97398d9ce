"""Keep the decisions of routed layers while llama.cpp evaluates its graph.

llama.cpp asks about each tensor before it computes it, and stops after those that are wanted. It is
stopped once a layer, when the weights are there: what it computes together up to them, it still
computes together. The order of choice lies in memory until the experts have read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moetool.tracing.llama_cpp.faults import WorkerError
from moetool.tracing.llama_cpp.graph import Node, RoutedNodes, Tensors, read_node


class ReadableTensors(Tensors, Protocol):
    """Tensors whose content can be read."""

    def read(self, tensor: int) -> Any:
        """Return the content of a tensor that is one piece."""


@dataclass(frozen=True)
class Decisions:
    """The decisions of one layer, in the order of choice.

    Attributes:
        experts: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
        margins: By how much the last chosen expert's score was ahead of the next one's; empty if
            they are not kept. # (num_tokens,)
    """

    experts: NDArray[np.int32]
    weights: NDArray[np.float32]
    margins: NDArray[np.float32]


@dataclass
class _Pieces:
    """The decisions of one layer so far, and where its order lies now."""

    order_at: int = 0
    experts: list[NDArray[np.int32]] = field(default_factory=list)
    weights: list[NDArray[np.float32]] = field(default_factory=list)
    margins: list[NDArray[np.float32]] = field(default_factory=list)


class GraphReader:
    """Notes all tensors of one evaluation, and stops at none.

    Attributes:
        nodes: In the order in which they are computed.
    """

    def __init__(self, tensors: Tensors) -> None:
        self.nodes: list[Node] = []
        self._tensors = tensors

    def see(self, tensor: int, *, is_asked: bool) -> bool:
        """Note a tensor that llama.cpp asks about."""
        if is_asked:
            self.nodes.append(read_node(self._tensors, tensor))
        return not is_asked


class DecisionReader:
    """Keeps the decisions of all layers.

    Args:
        tensors: What the addresses mean.
        layers: Where the decisions are.
        with_margins: Also keep margins, for which llama.cpp is stopped a second time.
    """

    def __init__(
        self, tensors: ReadableTensors, layers: Mapping[int, RoutedNodes], *, with_margins: bool
    ) -> None:
        self._tensors = tensors
        self._with_margins = with_margins
        self._orders = {nodes.order: nodes for nodes in layers.values()}
        self._weights = {nodes.weights: nodes for nodes in layers.values()}
        self._layers = layers
        self._pieces = {layer: _Pieces() for layer in layers}

    def see(self, tensor: int, *, is_asked: bool) -> bool:
        """Return whether a tensor is wanted; if it is computed, keep what it tells."""
        name = self._tensors.name(tensor)
        if nodes := self._orders.get(name):
            self._pieces[nodes.layer].order_at = tensor
            if is_asked:
                return self._with_margins
            self._keep_margins(nodes, tensor)
        elif nodes := self._weights.get(name):
            if not is_asked:
                self._keep_decisions(nodes, tensor)
        elif is_asked:
            return False
        return True

    def take(self, num_tokens: int) -> dict[int, Decisions]:
        """Return the decisions of each layer for all tokens since the last call; forget them.

        Raises:
            WorkerError: A layer ran other tokens than these.
        """
        taken = {}
        for layer, pieces in self._pieces.items():
            top_k = self._layers[layer].top_k
            experts = np.concatenate(pieces.experts or [np.zeros((0, top_k), np.int32)])
            if len(experts) != num_tokens:
                raise WorkerError(
                    f"layer {layer} shows {len(experts)} of {num_tokens} decisions",
                    hint="Trace the original checkpoint with transformers.",
                    is_untraceable=True,
                )
            none = np.zeros(0, np.float32)
            taken[layer] = Decisions(
                experts,
                np.concatenate(pieces.weights or [np.zeros((0, top_k), np.float32)]),
                np.concatenate(pieces.margins or [none]),
            )
            self._pieces[layer] = _Pieces()
        return taken

    def _read_order(self, nodes: RoutedNodes, tensor: int) -> NDArray[np.int32]:
        content = np.frombuffer(self._tensors.read(tensor), dtype=np.int32)
        return content.reshape(-1, nodes.num_experts)  # (num_tokens, num_experts)

    def _keep_decisions(self, nodes: RoutedNodes, tensor: int) -> None:
        pieces = self._pieces[nodes.layer]
        chosen = self._read_order(nodes, pieces.order_at)[:, : nodes.top_k]
        pieces.experts.append(chosen.copy())
        weights = np.frombuffer(self._tensors.read(tensor), dtype=np.float32)
        pieces.weights.append(weights.reshape(-1, nodes.top_k))  # (num_tokens, top_k)

    def _keep_margins(self, nodes: RoutedNodes, tensor: int) -> None:
        order = self._read_order(nodes, tensor)
        scores_at = self._tensors.sources(tensor)[0]
        scores = np.frombuffer(self._tensors.read(scores_at), dtype=np.float32)
        ranked = np.take_along_axis(scores.reshape(order.shape), order, axis=1)
        last = nodes.top_k - 1
        following = ranked[:, last + 1] if nodes.num_experts > nodes.top_k else -np.inf
        self._pieces[nodes.layer].margins.append(ranked[:, last] - following)
