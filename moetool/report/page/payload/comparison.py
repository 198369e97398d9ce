"""The same tokens under two models: what changed, by layer and by group."""

from __future__ import annotations

from typing import Any

from moetool.analysis.comparison.result import Agreement, Comparison
from moetool.report.page.payload.names import show_model, show_name, show_path
from moetool.report.page.payload.numbers import shorten

_FIGURES = ("overlap", "jaccard", "changed_decisions", "first_choice_flips", "weight_change")


def make_comparison(result: Comparison | None) -> dict[str, Any] | None:
    """Return how far both traces agree over all, by layer and by domain; None if not asked for."""
    if result is None:
        return None
    return {
        "other": show_path(result.other.trace) or show_model(result.other.model) or "a frame",
        "verdict": result.verdict,
        "overall": _make_agreement(result.overall),
        "layers": [
            {
                **_make_agreement(layer),
                "random_overlap": shorten(layer.baseline.overlap),
                "random_first_choice_flips": shorten(layer.baseline.first_choice_flips),
            }
            for layer in result.layers
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
