"""Checks that what an experts module received is a routing decision, made where the decision is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError

_FAULTS = (
    "an id beyond its experts",
    "one decision that names an expert twice",
    "a routing weight that is not finite",
    "a negative routing weight",
)


def find_faults(
    layers: Sequence[MoeLayer],
    ids: torch.Tensor,
    weights: torch.Tensor,
    real: torch.Tensor | None,
) -> torch.Tensor:
    """Return which layers received something else than decisions, without waiting for a GPU.

    Ids must be in range and distinct, weights finite and not negative.

    Args:
        layers: In the order of the first dimension.
        ids: -1, any number of times, where none ran. # (num_layers, num_slots, top_k)
        weights: # (num_layers, num_slots, top_k)
        real: Which slots hold tokens; None if all do. Others are not checked. # (num_slots,)

    Returns:
        # (num_faults, num_layers), bool
    """
    limits = [layer.num_experts + layer.num_identity_experts for layer in layers]
    limit: int | torch.Tensor = limits[0]
    if len(set(limits)) > 1:
        limit = torch.tensor(limits, device=ids.device)[:, None]
    ordered = ids.sort(dim=2).values
    is_same = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    faults = torch.stack(
        [
            (ordered[..., 0] < -1) | (ordered[..., -1] >= limit),
            is_same.any(dim=2),
            ~weights.isfinite().all(dim=2),
            (weights < 0).any(dim=2),
        ]
    )  # (num_faults, num_layers, num_slots)
    if real is not None:
        faults &= real
    return faults.any(dim=2)


def refuse_faults(layers: Sequence[MoeLayer], found: torch.Tensor) -> None:
    """Refuse what `find_faults` found.

    Args:
        layers: In the order of the second dimension.
        found: In host memory. # (num_faults, num_layers)

    Raises:
        UntraceableError: Names the first layer with the first fault.
    """
    for fault, index in found.nonzero().tolist():
        raise UntraceableError(
            f"{layers[index].experts_path} did not receive a routing decision: it has "
            f"{_FAULTS[fault]}.",
            hint="Try another dtype or experts implementation; if the error stays, report the model.",
        )
