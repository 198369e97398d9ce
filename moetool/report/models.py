"""Render the catalogue of published models and reported systems as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style
from moetool.report.text.tables import make_table
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.catalogue.published import PublishedModel, ReportedSystem
    from moetool.catalogue.selection import Selection

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


def render_table_text(catalogue: Selection, view: View = DEFAULT_VIEW) -> str:
    """Return both tables, how models are counted, and how to read the tables."""
    models, systems = catalogue.models, catalogue.systems
    blocks: list[Block] = []
    if models or not systems:
        blocks.append([_make_published(models)])
    if models:
        how = _say_how_counted(models)
        notes = [
            "total and active are the vendor's own figures; vendors count active parameters in "
            "different ways. Models are counted with their own transformers class"
            + (", except:" if how else "."),
            *how,
        ]
        blocks.append(make_paragraphs(notes, Style.MUTED))
    if systems:
        closing = [
            "reported: known only from reports; quoted, never computed.",
            *(f"{system.name}: {system.notes}" for system in systems if system.notes),
        ]
        blocks += [[_make_reported(systems)], make_paragraphs(closing, Style.MUTED)]
    return render_page(blocks, view)


def say_what_is_missing(catalogue: Selection) -> str | None:
    """Return a sentence on what a selection left out; None if there is nothing to say."""
    number = catalogue.num_unknown
    left_out = ""
    if number:
        verb = "was" if number == 1 else "were"
        left_out = (
            f"{number_of(number, 'model')} {verb} left out because the vendor doesn't publish "
            "the figure that is limited."
        )
    if catalogue.models or catalogue.systems:
        return left_out or None
    return f"No model matches. {left_out}".rstrip()


def _make_published(models: Sequence[PublishedModel]) -> Table:
    return make_table(
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


def _make_reported(systems: Sequence[ReportedSystem]) -> Table:
    return make_table(
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


def render_json(catalogue: Selection, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, with figures as the strings that were published."""
    entries = [
        *(
            {"kind": model.kind, "can_be_counted": model.can_be_counted, **asdict(model)}
            for model in catalogue.models
        ),
        *({"kind": _REPORTED, **asdict(system)} for system in catalogue.systems),
    ]
    missing = say_what_is_missing(catalogue)
    notes = [_NOT_GIVEN, *([missing] if missing else [])]
    return envelope.render_json("moetool.models/1", {"models": entries, "notes": notes})


def render_csv(catalogue: Selection, _: View = DEFAULT_VIEW) -> str:
    """Return one row per model and reported system."""
    return envelope.render_csv(_list_rows(catalogue), _COLUMNS)


RENDERERS: Renderers[Selection] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _list_rows(catalogue: Selection) -> Iterator[dict[str, object]]:
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
        named = {name: value for name, value in asdict(system).items() if name in _COLUMNS}
        yield {"kind": _REPORTED, **named}


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
