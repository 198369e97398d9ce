"""Layers and numbers as the pages on tokens show them."""

from __future__ import annotations

from moetool.report.text.numbers import format_stack
from moetool.trace.facts import LayerFacts

# In a column of numbers; a word would widen it.
_UNKNOWN = "–"


def show_layer(layer: LayerFacts) -> str:
    """Return the number of a layer, after its stack unless that is the decoder."""
    return f"{format_stack(layer.stack)}{layer.layer}"


def show_share(share: float | None) -> str:
    """Return a share as a percentage, or a dash; never `0.0%` for a share above zero."""
    if share is None:
        return _UNKNOWN
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
