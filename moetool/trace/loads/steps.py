"""Loads of single steps of a load table: what the engine that counted them ran together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moetool.trace.loads.rows import Place, iter_load_tables
from moetool.trace.loads.table import LoadTable
from moetool.trace.reading.words import encode_words

# Rows that are held, and loads of experts in single steps: half a gibibyte each at most.
_MOST_ROWS = 1 << 24
_MOST_CELLS = 1 << 26


def read_step_loads(
    table: LoadTable, num_experts: Mapping[Place, int]
) -> dict[Place, NDArray[np.int64]] | None:
    """Return each layer's loads in every step in which it counted anything.

    Args:
        table: The load table.
        num_experts: By stack and layer, of the layers to read.

    Returns:
        By stack and layer, in ascending order of steps: (num_steps, num_experts). None if the table
        has no steps, or more than memory should hold.

    Raises:
        InputError: A value is missing, below 0 or doesn't fit its column, or the file is damaged.
    """
    if "step" not in table.columns:
        return None
    parts: dict[Place, list[NDArray[np.int64]]] = {place: [] for place in num_experts}
    num_rows = 0
    for rows in iter_load_tables(table.path, table.columns):
        num_rows += rows.num_rows
        if num_rows > _MOST_ROWS:
            return None
        stacks, stack = encode_words(rows, "stack", default="decoder")
        step, layer, expert, count = (
            rows.column(name).to_numpy().astype(np.int64)
            for name in ("step", "layer", "expert", "count")
        )
        for place in np.unique(np.stack([stack, layer]), axis=1).T.tolist():
            name = (stacks[place[0]], place[1])
            if name in parts:
                mine = (stack == place[0]) & (layer == place[1])
                parts[name].append(np.stack([step[mine], expert[mine], count[mine]]))
    loads: dict[Place, NDArray[np.int64]] = {}
    for name, each in parts.items():
        if each:
            step, expert, count = np.concatenate(each, axis=1)
            steps, index = np.unique(step, return_inverse=True)
            if len(steps) * num_experts[name] > _MOST_CELLS:
                return None
            load = np.zeros((len(steps), num_experts[name]), dtype=np.int64)
            np.add.at(load, (index, expert), count)
            loads[name] = load[load.any(axis=1)]
    return loads
