"""Checks that what an experts module received is a routing decision, made where the decision is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError

# By the bit that marks them.
_FAULTS = (
    "an id beyond its experts",
    "one decision that names an expert twice",
    "a routing weight that is not finite",
    "a negative routing weight",
)


def find_faults(
    layers: Sequence[MoeLayer], ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return what is wrong with each decision, without waiting for a GPU.

    Ids must be in range and distinct, weights finite and not negative.

    Args:
        layers: In the order of the first dimension.
        ids: -1, any number of times, where none ran. # (num_layers, num_slots, top_k)
        weights: # (num_layers, num_slots, top_k)

    Returns:
        A bit for each fault. # (num_layers, num_slots), uint8
    """
    limits = [layer.num_experts + layer.num_identity_experts for layer in layers]
    limit: int | torch.Tensor = limits[0]
    if len(set(limits)) > 1:
        limit = torch.tensor(limits, device=ids.device)[:, None]
    ordered = ids.sort(dim=2).values
    is_same = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    found = (
        (ordered[..., 0] < -1) | (ordered[..., -1] >= limit),
        is_same.any(dim=2),
        ~weights.isfinite().all(dim=2),
        (weights < 0).any(dim=2),
    )
    faults = torch.zeros(ids.shape[:2], dtype=torch.uint8, device=ids.device)
    for bit, is_found in enumerate(found):
        faults |= is_found.to(torch.uint8) << bit
    return faults


def refuse_faults(layer: MoeLayer, faults: NDArray[np.uint8]) -> None:
    """Refuse a layer's decisions if one of them has a fault.

    Args:
        layer: Named in the error.
        faults: From `find_faults`, for real tokens. # (num_tokens,)

    Raises:
        UntraceableError: Names the fault.
    """
    if not faults.any():
        return
    bits = int(np.bitwise_or.reduce(faults))
    fault = next(name for bit, name in enumerate(_FAULTS) if bits >> bit & 1)
    raise UntraceableError(
        f"{layer.experts_path} did not receive a routing decision: it has {fault}.",
        hint="Try another dtype or experts implementation; if the error stays, report the model.",
    )
