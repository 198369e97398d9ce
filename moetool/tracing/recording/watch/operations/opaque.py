"""Results of code that torch does not see, such as a package's own kernels (Tutel).

If autograd knows how they follow from their inputs, that shows what they are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node


def is_opaque(value: torch.Tensor) -> bool:
    """Return whether a tensor comes from an autograd function that somebody else defined."""
    return isinstance(value.grad_fn, BackwardCFunction)


def find_origins(
    value: torch.Tensor, start: Node | None, edges: Sequence[Sequence[GradientEdge | None]]
) -> frozenset[int] | None:
    """Return the products that a tensor is made of by autograd's graph.

    Args:
        value: A tensor with a gradient.
        start: Where gradients reach the hidden states.
        edges: And where they reach the outputs of each product.

    Returns:
        The numbers of the products; None if it is not made of hidden states.
    """
    numbers = {
        edge.node: number
        for number, of_product in enumerate(edges)
        for edge in of_product
        if edge is not None
    }
    found: set[int] = set()
    is_found = False
    waiting, seen = [value.grad_fn], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in numbers:
            found.add(numbers[node])
        elif node is start:
            is_found = True
        else:
            waiting += [before for before, _ in node.next_functions]
    return frozenset(found) if found or is_found else None
