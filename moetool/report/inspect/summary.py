"""Sum up each inspected model in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.inspect import comparison
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.inspection.result import Inspection


def render_table_text(models: Sequence[Inspection], view: View = DEFAULT_VIEW) -> str:
    """Return models side by side, even if there is only one."""
    return render_page(comparison.list_blocks(models, view), view)


def render_json(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return the rows as one JSON object, with the notes on each model."""
    rows = [{**model.to_summary(), "notes": model.notes} for model in models]
    return envelope.render_json(
        "moetool.inspect-summary/1", {"models": rows}, libraries=envelope.MODEL_LIBRARIES
    )


def render_csv(models: Sequence[Inspection], _: View = DEFAULT_VIEW) -> str:
    """Return one row for each model."""
    columns = list(models[0].summary_types())
    return envelope.render_csv((model.to_summary() for model in models), columns)


RENDERERS: Renderers[Sequence[Inspection]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
