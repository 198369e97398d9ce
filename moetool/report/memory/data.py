"""Render estimates as a page or a table, as JSON, or as CSV with one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.memory import comparison, page
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.page import render_page

if TYPE_CHECKING:
    from moetool.memory.result import Estimate


def render_table_text(estimates: Sequence[Estimate], view: View = DEFAULT_VIEW) -> str:
    """Return one estimate in full, or a row for each of several."""
    if len(estimates) == 1:
        return render_page(page.list_blocks(estimates[0]), view)
    return render_page(comparison.list_blocks(estimates), view)


def render_json(estimates: Sequence[Estimate], view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, sizes in bytes and unknown values as null."""
    objects = [estimate.to_dict() for estimate in estimates]
    return envelope.render_json(
        "moetool.memory-estimate/1",
        {"estimates": objects, **view.list_failures()},
        libraries=envelope.MODEL_LIBRARIES,
    )


def render_csv(estimates: Sequence[Estimate], _: View = DEFAULT_VIEW) -> str:
    """Return one row for every estimate, without its lists: fits, ranks and notes."""
    return envelope.render_rows(estimates)


RENDERERS: Renderers[Sequence[Estimate]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
