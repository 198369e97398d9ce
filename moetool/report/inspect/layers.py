"""Show every layer's components, with identical layers merged."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.report.inspect.words import word_indices
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable
from moetool.report.text.tables import Cell, make_table
from moetool.report.text.words import UNKNOWN
from moetool.wording import format_bytes, format_count

if TYPE_CHECKING:
    from moetool.inspection.figures import InspectedRow
    from moetool.inspection.result import Inspection

# Width of the column of layer numbers; the exact counts need the rest.
_LAYERS = 12
_ANY_WIDTH = 1_000_000


def list_layers(model: Inspection, *, is_folded: bool) -> Block:
    """Return the parameter table, with one group of rows for all layers that have the same rows.

    Numbers are those of a single layer. JSON and CSV keep a row for every layer.

    Args:
        is_folded: Fold long lists of layers into several lines.
    """
    in_files = model.files is not None
    rows = []
    for stack, layers, components in group_layers(model.rows):
        width = _LAYERS if is_folded else _ANY_WIDTH
        places = _cut_place(stack, layers, num_lines=len(components), width=width)
        for place, row in zip(places, components, strict=True):
            rows.append(
                (
                    place,
                    row.component.replace("_", " "),
                    UNKNOWN if row.params is None else f"{row.params:,}",
                    _word_active(row),
                    make_printable((row.file_dtype or "") if in_files else (row.dtype or UNKNOWN)),
                    _word_bytes(row.file_bytes if in_files else row.bytes),
                )
            )
    headers = ("layers", "component", "parameters", "active", "dtype", "bytes")
    as_held = "dequantized" if model.quantization else "as loaded"
    where = "in the files" if in_files else as_held
    legend = f"Numbers are for one layer; dtype and bytes: {where}."
    return [make_table(headers, rows, right=(2, 3, 5)), *make_paragraphs([legend], Style.MUTED)]


def group_layers(
    rows: tuple[InspectedRow, ...],
) -> list[tuple[str, tuple[int, ...], tuple[InspectedRow, ...]]]:
    """Return groups of layers with the same rows: their stack, their numbers and these rows.

    Groups are in the order of their first layers. Parts outside layers form a group without
    numbers.
    """
    places: dict[tuple[str, int | None], list[InspectedRow]] = {}
    for row in rows:
        places.setdefault((row.stack, row.layer), []).append(row)
    groups: dict[tuple[InspectedRow, ...], list[int]] = {}
    for (_, layer), found in places.items():
        alike = tuple(replace(row, layer=None if layer is None else 0) for row in found)
        groups.setdefault(alike, []).extend([] if layer is None else [layer])
    return [(alike[0].stack, tuple(layers), alike) for alike, layers in groups.items()]


def _cut_place(stack: str, layers: tuple[int, ...], *, num_lines: int, width: int) -> list[Cell]:
    """Return the name of a group of layers, in lines of `width`, as `num_lines` cells.

    Left to itself, the table would narrow the columns of numbers instead.
    """
    words = word_indices(sorted(layers)) if layers else "–" if stack == "decoder" else ""
    named = words if stack == "decoder" else make_printable(f"{stack} {words}")
    lines = textwrap.wrap(named, width)
    lines += [""] * (num_lines - len(lines))
    return [*lines[: num_lines - 1], tuple(lines[num_lines - 1 :])]


def _word_active(row: InspectedRow) -> str:
    if row.active_params is not None:
        return format_count(row.active_params)
    return UNKNOWN if row.active_params_max is None else f"≤ {format_count(row.active_params_max)}"


def _word_bytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else format_bytes(num_bytes)
