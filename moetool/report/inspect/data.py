"""Render inspections as tables, as JSON, or as CSV with a row per layer and component."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.inspect import comparison, page
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.inspection.result import Inspection


def render_table_text(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return one model in full, or several side by side."""
    if len(models) == 1 or view.per_layer:
        blocks = chain.from_iterable(page.list_blocks(model, view) for model in models)
        return render_page(blocks, view)
    return render_page(comparison.list_blocks(models, view), view)


def render_json(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded; rows only in a view per layer."""
    objects = [model.to_dict(per_layer=view.per_layer) for model in models]
    return envelope.render_json(
        "moetool.inspect/1",
        {"models": objects, **view.list_failures()},
        libraries=envelope.MODEL_LIBRARIES,
    )


def render_csv(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and component of each model."""
    return envelope.render_rows(models)


RENDERERS: Renderers[Sequence[Inspection]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
