"""Results by the page's layers: one may lack a layer that another has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from moetool.trace.facts import LayerFacts
from moetool.trace.reading.layer_shapes import Place

Item = TypeVar("Item")


def place_of(layer: LayerFacts) -> Place:
    """Return what identifies a layer."""
    return layer.stack, layer.layer


def align(layers: Sequence[LayerFacts], items: Iterable[tuple[Place, Item]]) -> list[Item | None]:
    """Return the item of each of the page's layers; None where there is none."""
    by_place = dict(items)
    return [by_place.get(place_of(layer)) for layer in layers]
