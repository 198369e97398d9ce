"""Find how much more than all domains the keenest domain of each expert uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moetool.analysis.specialization.result import DomainExpertTest, LayerSpecialization


@dataclass(frozen=True)
class StrongestLifts:
    """The largest lift of each expert of a layer.

    Attributes:
        lifts: Over the domains that use the expert more than all tokens do, with a q-value of at
            most 5 %; None for experts without one. # (num_experts,)
    """

    stack: str
    layer: int
    lifts: tuple[float | None, ...]


def find_strongest_lifts(
    layers: Sequence[LayerSpecialization], experts: Sequence[DomainExpertTest]
) -> list[StrongestLifts]:
    """Return the strongest lifts of each layer, in the order of the layers."""
    found: dict[tuple[str, int], list[float | None]] = {
        (layer.stack, layer.layer): [None] * layer.num_experts for layer in layers
    }
    for cell in experts:
        if cell.is_domain_expert and cell.lift is not None:
            lifts = found[cell.stack, cell.layer]
            lifts[cell.expert] = max(cell.lift, lifts[cell.expert] or 0.0)
    return [StrongestLifts(*place, tuple(lifts)) for place, lifts in found.items()]
