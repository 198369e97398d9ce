"""Render estimates as a page or a table, as JSON, or as CSV with one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.memory.comparison import render_estimates
from moetool.report.memory.page import render_page
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View

if TYPE_CHECKING:
    from moetool.memory.result import Estimate


def render_table_text(estimates: Sequence[Estimate], _: View = DEFAULT_VIEW) -> str:
    """Return one estimate in full, or a row for each of several."""
    return render_page(estimates[0]) if len(estimates) == 1 else render_estimates(estimates)


def render_json(estimates: Sequence[Estimate], _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, sizes in bytes and unknown values as null."""
    objects = [estimate.to_dict() for estimate in estimates]
    return envelope.render_json("moetool.memory-estimate/1", {"estimates": objects})


def render_csv(estimates: Sequence[Estimate], _: View = DEFAULT_VIEW) -> str:
    """Return one row for every estimate, without its lists: fits, ranks and notes."""
    return envelope.render_rows(estimates)


RENDERERS: Renderers[Sequence[Estimate]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
