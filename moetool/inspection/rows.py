"""Rows of an inspection: each place in a model, as it is loaded and as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moetool.anatomy.components import Place
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ParameterRow, ParameterTable
from moetool.inspection.figures import InspectedRow


def pair_rows(model: ParameterTable, files: HeaderTable | None) -> Iterator[InspectedRow]:
    """Yield a row for every place in a model, in its files, or in both.

    Args:
        model: The skeleton's table.
        files: What the headers show; None without files.
    """
    in_model = {_find_place(row): row for row in model.rows}
    in_files = {_find_place(row): row for row in files.table.rows} if files else {}
    uncounted = files.uncounted if files else {}
    for place in {**in_model, **in_files}:
        row = pair_row(in_model.get(place), in_files.get(place))
        yield replace(row, file_params=None) if place in uncounted else row


def list_header_rows(files: HeaderTable) -> Iterator[InspectedRow]:
    """Yield a row for every place in files that no skeleton is compared with.

    The parameters are those of the files. What they take once loaded is unknown.
    """
    for row in files.table.rows:
        if _find_place(row) in files.uncounted:
            yield replace(pair_row(None, row), file_params=None)
        else:
            yield replace(pair_row(row, row), dtype=None, bytes=None)


def pair_row(model: ParameterRow | None, files: ParameterRow | None) -> InspectedRow:
    """Return one row as it is loaded and as it is stored; either may be missing."""
    row = model or files
    assert row is not None
    active = model.active if model else None
    return InspectedRow(
        stack=row.stack,
        layer=row.layer,
        component=row.component.value,
        params=model.num_params if model else None,
        active_params=active.exact if active else None,
        active_params_min=active.fewest if active else None,
        active_params_max=active.most if active else None,
        dtype=model.dtype if model else None,
        bytes=model.num_bytes if model else None,
        file_params=files.num_params if files else None,
        file_dtype=files.dtype if files else None,
        file_bytes=files.num_bytes if files else None,
    )


def _find_place(row: ParameterRow) -> Place:
    return Place(row.stack, row.layer, row.component)
