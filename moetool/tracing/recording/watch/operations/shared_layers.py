"""Layers that all experts share, as they do whose experts are low-rank updates (MixLoRA).

An expert is then the shared layers with its updates, and its last product may be that of a shared
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from moetool.tracing.recording.watch.operations.labels import Label, name_of, storage_of
from moetool.tracing.recording.watch.operations.products import FACTORS, Product


def label_shared(
    operation: Any,
    args: Any,
    *,
    sources_of: Callable[[torch.Tensor], frozenset[int] | None],
    products: Sequence[Product],
) -> tuple[torch.Tensor, Label] | None:
    """Return the weight of a shared layer that runs for one expert, and its label there.

    Args:
        operation: An overload of torch's dispatcher.
        args: Its positional arguments.
        sources_of: Returns which products a tensor is made of; None if it is not made of hidden states.
        products: Those that ran before.

    Returns:
        None if it is not a product of a weight and rows that one expert has made.
    """
    positions = FACTORS.get(name_of(operation))
    if positions is None or name_of(operation) == "_grouped_mm":
        return None
    factors = [args[position] for position in positions]
    sources = [sources_of(factor) for factor in factors]
    if (sources[0] is None) == (sources[1] is None):
        return None
    weight = factors[sources.index(None)]
    experts = _find_experts(next(filter(None, sources), frozenset()), products)
    if len(experts) != 1:
        return None
    number = torch.tensor(experts.pop(), device=weight.device).expand(weight.shape)
    # Parameters of experts have numbers from 0.
    return weight, Label(number, frozenset({-1 - storage_of(weight)}))


def _find_experts(sources: Collection[int], products: Sequence[Product]) -> set[int]:
    return {expert for number in sources for expert in products[number].experts.tolist()}
