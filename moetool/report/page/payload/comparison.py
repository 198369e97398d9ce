"""The same tokens under two models: what changed, by layer and by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetool.analysis.comparison.result import Agreement, Comparison
from moetool.report.page.payload.alignment import align, place_of
from moetool.report.page.payload.values.names import show_name, show_other
from moetool.report.page.payload.values.numbers import shorten
from moetool.trace.facts import LayerFacts

_FIGURES = ("overlap", "changed_decisions", "first_choice_flips")


def make_comparison(
    result: Comparison | None, layers: Sequence[LayerFacts]
) -> dict[str, Any] | None:
    """Return how far both traces agree over all, by layer and by domain; None if not asked for."""
    if result is None:
        return None
    return {
        "other": show_other(result),
        "overall": _make_agreement(result.overall),
        "layers": [
            None
            if layer is None
            else {
                **_make_agreement(layer),
                "random_changed_decisions": shorten(layer.baseline.changed_decisions),
            }
            for layer in align(layers, ((place_of(layer), layer) for layer in result.layers))
        ],
        "groups": [
            {"group": show_name(group.group), **_make_agreement(group)} for group in result.groups
        ],
    }


def _make_agreement(agreement: Agreement) -> dict[str, Any]:
    limits = [
        f"{name}_{end}" for name in ("overlap", "changed_decisions") for end in ("low", "high")
    ]
    return {
        "num_decisions": agreement.num_decisions,
        **{name: shorten(getattr(agreement, name)) for name in (*_FIGURES, *limits)},
    }
