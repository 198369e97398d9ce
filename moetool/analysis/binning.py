"""Put the cells of a map that has too many of them into fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Cells = Sequence[float | None]


def split_evenly(number: int, most: int) -> list[slice]:
    """Return slices of a range, at most `most` of them, equal in size except for the last."""
    size = max(1, -(-number // max(1, most)))
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


def merge_cells(
    rows: Sequence[Cells], columns: Sequence[slice], *, by: Literal["mean", "max"]
) -> list[float | None]:
    """Return one row for several: a cell for each slice of columns.

    Args:
        rows: With None for unknown cells. Shorter rows lack the last cells.
        columns: The cells of each row that become one.
        by: Whether cells become their mean or their largest; unknown ones are left out.
    """
    width = max((len(row) for row in rows), default=0)
    values = np.full((len(rows), width), np.nan)
    for number, row in enumerate(rows):
        values[number, : len(row)] = [np.nan if cell is None else cell for cell in row]
    merged: list[float | None] = []
    for column in columns:
        part = values[:, column]
        known = part[~np.isnan(part)]
        if len(known):
            merged.append(float(known.mean() if by == "mean" else known.max()))
        else:
            merged.append(None)
    return merged
