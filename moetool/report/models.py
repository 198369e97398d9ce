"""Render the catalogue of published models and reported systems as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style
from moetool.report.text.tables import make_table

if TYPE_CHECKING:
    from moetool.catalogue.published import PublishedModel, ReportedSystem

_REPORTED = "reported"
_STANDS_IN = "*"
_UNCOUNTED = "†"
_NOT_GIVEN = "A figure is not given if neither the vendor nor the report states it."
_COLUMNS = (
    "kind",
    "name",
    "title",
    "hub_id",
    "maker",
    "total",
    "active",
    "experts",
    "source",
    "active_note",
    "notes",
    "counted_as",
    "not_counted_because",
)


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be named without a network."""

    models: Sequence[PublishedModel]
    systems: Sequence[ReportedSystem]


def render_table_text(catalogue: Catalogue, view: View = DEFAULT_VIEW) -> str:
    """Return both tables, how models are counted, and how to read the tables."""
    models, systems = catalogue.models, catalogue.systems
    published = make_table(
        ("name", "total", "active", "Hub id"),
        [
            (
                f"{model.name}{_mark(model)}",
                _in_billions(model.vendor.total_b) or "–",
                "dense" if model.kind == "dense" else _in_billions(model.vendor.active_b) or "–",
                model.hub_id,
            )
            for model in models
        ],
        right=(1, 2),
    )
    reported = make_table(
        ("reported", "maker", "total", "active", "experts", "source"),
        [
            (
                system.name,
                system.maker,
                system.total or "–",
                system.active or "–",
                system.experts or "–",
                system.source,
            )
            for system in systems
        ],
        right=(2, 3),
    )
    notes = [
        "total and active are the vendor's own figures; vendors count active parameters in "
        "different ways. Models are counted with their own transformers class, except:",
        *_say_how_counted(models),
    ]
    closing = [
        "reported: known only from reports; quoted, never computed.",
        *(f"{system.name}: {system.notes}" for system in systems if system.notes),
    ]
    blocks = (
        [published],
        make_paragraphs(notes, Style.MUTED),
        [reported],
        make_paragraphs(closing, Style.MUTED),
    )
    return render_page(blocks, view)


def render_json(catalogue: Catalogue, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, with figures as the strings that were published."""
    entries = [
        *(
            {"kind": model.kind, "can_be_counted": model.can_be_counted, **asdict(model)}
            for model in catalogue.models
        ),
        *({"kind": _REPORTED, **asdict(system)} for system in catalogue.systems),
    ]
    return envelope.render_json("moetool.models/1", {"models": entries, "notes": [_NOT_GIVEN]})


def render_csv(catalogue: Catalogue, _: View = DEFAULT_VIEW) -> str:
    """Return one row per model and reported system."""
    return envelope.render_csv(_list_rows(catalogue), _COLUMNS)


RENDERERS: Renderers[Catalogue] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _list_rows(catalogue: Catalogue) -> Iterator[dict[str, object]]:
    for model in catalogue.models:
        vendor = model.vendor
        yield {
            "kind": model.kind,
            "name": model.name,
            "title": model.title,
            "hub_id": model.hub_id,
            "total": _in_billions(vendor.total_b),
            "active": _in_billions(vendor.active_b),
            "source": vendor.source,
            "active_note": vendor.active_note,
            "notes": vendor.notes,
            "counted_as": model.counted_as,
            "not_counted_because": model.not_counted_because,
        }
    for system in catalogue.systems:
        yield {"kind": _REPORTED, **asdict(system)}


def _mark(model: PublishedModel) -> str:
    if not model.can_be_counted:
        return f" {_UNCOUNTED}"
    return f" {_STANDS_IN}" if model.counted_as else ""


def _in_billions(figure: str | None) -> str | None:
    return None if figure is None else f"{figure}B"


def _say_how_counted(models: Sequence[PublishedModel]) -> list[str]:
    stand_ins = [
        f"{_STANDS_IN} {model.name}: {model.counted_as}" for model in models if model.counted_as
    ]
    uncounted = [
        f"{_UNCOUNTED} {model.name} can't be counted: {model.not_counted_because}"
        for model in models
        if not model.can_be_counted
    ]
    return [*stand_ins, *uncounted]
