"""Domains: how much the choice of experts tells about them, and the experts that each uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetool.analysis.specialization.result import (
    DomainExpertTest,
    LayerSpecialization,
    Specialization,
    is_small,
)
from moetool.report.page.payload.alignment import align, place_of
from moetool.report.page.payload.values.names import show_name
from moetool.report.page.payload.values.numbers import shorten, shorten_all
from moetool.trace.facts import LayerFacts
from moetool.trace.reading.layer_shapes import Place

# Codes of a cell's certainty.
_UNSURE, _DISCOVERY, _CERTAIN, _BEYOND_VOCABULARY = range(4)


def make_domains(result: Specialization | None) -> list[dict[str, Any]]:
    """Return the domains and their sizes, in the order that other values index."""
    if result is None:
        return []
    return [
        {"name": show_name(size.domain), "prompts": size.prompts, "tokens": size.tokens}
        for size in result.domains
    ]


def make_specialization(
    result: Specialization | None,
    layers: Sequence[LayerFacts],
    *,
    has_all_intervals: bool,
    has_all_lifts: bool = True,
) -> dict[str, Any] | None:
    """Return the lift of every domain and expert, and the information of each layer.

    Args:
        result: None if there is none.
        layers: Of the page.
        has_all_intervals: Otherwise, only lifts that are beyond chance have intervals.
        has_all_lifts: Otherwise, other lifts are left out.
    """
    if result is None:
        return None
    index_of = {size.domain: index for index, size in enumerate(result.domains)}
    cells: dict[Place, list[list[DomainExpertTest | None]]] = {
        place_of(layer): [[None] * layer.num_experts for _ in result.domains] for layer in layers
    }
    for cell in result.experts:
        if (cell.stack, cell.layer) in cells:
            cells[cell.stack, cell.layer][index_of[cell.domain]][cell.expert] = cell
    return {
        "num_permutations": result.num_permutations,
        "information": [
            _make_information(layer)
            for layer in align(layers, ((place_of(layer), layer) for layer in result.layers))
        ],
        "lifts": [
            [
                _make_cells(row, has_all_intervals=has_all_intervals, has_all_lifts=has_all_lifts)
                for row in rows
            ]
            for rows in cells.values()
        ],
    }


def _make_information(layer: LayerSpecialization | None) -> dict[str, Any]:
    """Return what a layer tells about the domain; unknown if it was not measured."""
    return {
        "normalized": shorten(layer.normalized if layer else None),
        "p_value": shorten(layer.p_value if layer else None),
        "is_significant": layer is not None and layer.is_significant,
        "conditional_normalized": shorten(layer.conditional_normalized if layer else None),
    }


def _make_cells(
    row: list[DomainExpertTest | None], *, has_all_intervals: bool, has_all_lifts: bool
) -> dict[str, list[Any]]:
    """Return the columns of one layer's lifts in one domain, with an entry for each expert."""
    certainty = [_find_certainty(cell) for cell in row]
    sure_cells = [
        cell if sure > _UNSURE else None for cell, sure in zip(row, certainty, strict=True)
    ]
    with_lift = row if has_all_lifts else sure_cells
    with_interval = row if has_all_intervals else sure_cells
    return {
        "lift": shorten_all(None if cell is None else cell.lift for cell in with_lift),
        "low": shorten_all(None if cell is None else cell.lift_low for cell in with_interval),
        "high": shorten_all(None if cell is None else cell.lift_high for cell in with_interval),
        "certainty": certainty,
    }


def _find_certainty(cell: DomainExpertTest | None) -> int:
    if cell is None:
        return _UNSURE
    if cell.is_beyond_vocabulary:
        return _BEYOND_VOCABULARY
    if is_small(cell.familywise_p_value):
        return _CERTAIN
    return _DISCOVERY if is_small(cell.q_value) else _UNSURE
