"""Find the routed layers in the graph that llama.cpp evaluates, and where their decisions are.

The decision is what the experts receive: the ids that every product with stacked experts takes
(`MUL_MAT_ID`), and the weights that their outputs are multiplied by. A graph is read once, in a first
evaluation, and refused if what the products take is not the tensor that is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moetool.tracing.llama_cpp.faults import WorkerError

# Operations on stacked experts, and which of their sources has the ids.
_BY_IDS = {"MUL_MAT_ID": 2, "ADD_ID": 2}
_PRODUCT = "MUL_MAT_ID"
_ORDER, _CHOICE = "ffn_moe_argsort-", "ffn_moe_topk-"
_WEIGHTED = "ffn_moe_weighted-"
_CHOICE_OF = re.compile(r"ffn_moe_topk-(\d+)")
_WEIGHTS = re.compile(
    r"ffn_moe_weights(?:_norm|_scaled|_softmax)?-(?P<layer>\d+)(?: \(reshaped\))*"
)
# A copy on another device: `CUDA0#ffn_moe_topk-3#0`.
_COPY = re.compile(r"[^#]+#(?P<name>.+)#\d+")


class Tensors(Protocol):
    """Tensors by their addresses; `library.Ggml` is one."""

    def name(self, tensor: int) -> str:
        """Return a tensor's name."""

    def operation(self, tensor: int) -> str:
        """Return the operation that computes a tensor."""

    def sources(self, tensor: int) -> list[int]:
        """Return what a tensor is computed from; 0 where there is nothing."""

    def view_source(self, tensor: int) -> int:
        """Return the tensor whose memory another one is a part of; 0 if it has its own."""

    def rows_and_columns(self, tensor: int) -> tuple[int, int]:
        """Return the number of a tensor's rows, and of the numbers in each."""


@dataclass(frozen=True)
class Node:
    """A tensor of the graph.

    Attributes:
        name: As llama.cpp calls it.
        operation: As ggml calls it.
        sources: Names of what it is computed from, copies on other devices under the same.
        view_source: Name of the tensor that it is a part of; empty if it has its own memory.
        num_columns: Numbers in a row.
    """

    name: str
    operation: str
    sources: tuple[str, ...]
    view_source: str
    num_columns: int


@dataclass(frozen=True)
class RoutedNodes:
    """Where the decisions of one layer are.

    Attributes:
        layer: The model's own index.
        order: Name of the tensor with all experts in the order of choice.
        weights: Name of the tensor with the weights, which is computed after it.
        num_experts: Routed experts.
        top_k: Experts that run, the first of the order.
    """

    layer: int
    order: str
    weights: str
    num_experts: int
    top_k: int


def read_node(tensors: Tensors, tensor: int) -> Node:
    """Return a tensor of the graph that is being evaluated."""
    name = tensors.name(tensor)
    view = tensors.view_source(tensor)
    return Node(
        name=name,
        operation=tensors.operation(tensor),
        sources=tuple(
            _drop_copy(tensors.name(source)) if source else "" for source in tensors.sources(tensor)
        ),
        view_source=tensors.name(view) if view else "",
        num_columns=tensors.rows_and_columns(tensor)[1],
    )


def find_routed_nodes(nodes: Sequence[Node]) -> dict[int, RoutedNodes]:
    """Return where the decisions of each layer with stacked experts are, in order.

    Raises:
        WorkerError: Experts take their ids or weights from elsewhere than is known.
    """
    by_name: dict[str, list[Node]] = {}
    for node in nodes:
        by_name.setdefault(node.name, []).append(node)
    layers: dict[int, None] = {}
    for node in nodes:
        if node.operation not in _BY_IDS:
            continue
        ids = node.sources[_BY_IDS[node.operation]]
        found = _CHOICE_OF.fullmatch(ids)
        if found is None:
            raise _unknown(f"'{node.name}' takes its experts from '{ids}'")
        if node.operation == _PRODUCT:
            layers[int(found[1])] = None
    return {layer: _find_nodes(by_name, layer) for layer in sorted(layers)}


def _find_nodes(by_name: Mapping[str, Sequence[Node]], layer: int) -> RoutedNodes:
    def find_one(name: str) -> Node:
        found = by_name.get(name, ())
        if len(found) != 1:
            raise _unknown(f"layer {layer} has {len(found)} tensors '{name}'")
        return found[0]

    order = find_one(f"{_ORDER}{layer}")
    choice = find_one(f"{_CHOICE}{layer}")
    if order.operation != "ARGSORT" or choice.view_source != order.name:
        raise _unknown(f"'{choice.name}' is not a part of '{order.name}'")
    weighted = find_one(f"{_WEIGHTED}{layer}")
    weights = next((name for name in weighted.sources if _is_weights(name, layer)), None)
    if weighted.operation != "MUL" or weights is None:
        raise _unknown(f"'{weighted.name}' takes no weights that are known")
    find_one(weights)
    return RoutedNodes(
        layer=layer,
        order=order.name,
        weights=weights,
        num_experts=order.num_columns,
        top_k=choice.num_columns,
    )


def _is_weights(name: str, layer: int) -> bool:
    found = _WEIGHTS.fullmatch(name)
    return found is not None and int(found["layer"]) == layer


def _drop_copy(name: str) -> str:
    found = _COPY.fullmatch(name)
    return found["name"] if found else name


def _unknown(seen: str) -> WorkerError:
    return WorkerError(
        f"llama.cpp routes this architecture in a way that is not known: {seen}",
        hint="Trace the original checkpoint with transformers.",
        is_untraceable=True,
    )


def choose_layers(
    found: Mapping[int, RoutedNodes], wanted: Iterable[int] | None
) -> dict[int, RoutedNodes]:
    """Return the layers to record.

    Raises:
        WorkerError: One that is wanted does not route.
    """
    if wanted is None:
        return dict(found)
    missing = sorted(set(wanted) - set(found))
    if missing and found:
        raise WorkerError(
            f"layer {missing[0]} does not route",
            hint=f"Name layers from {min(found)} to {max(found)}, or leave out --layers.",
        )
    return {layer: found[layer] for layer in sorted(set(wanted) - set(missing))}
