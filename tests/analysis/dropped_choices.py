"""Traces in which some choices ran no expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from moetool.trace.decisions import NO_EXPERT


def drop_choices(
    table: pa.Table, share: float, *, share_of_decisions: float = 0.0, seed: int = 0
) -> pa.Table:
    """Return rows of which some ran no expert.

    Args:
        table: Rows in the order of decisions, each with the same number.
        share: Of the choices after the first of a decision, those that ran none.
        share_of_decisions: Of the decisions, those in which no choice ran.
        seed: Of the choices that are dropped.
    """
    rng = np.random.default_rng(seed)
    rank = table.column("rank").to_numpy()
    num_choices = int(rank.max()) + 1
    is_idle = rng.random(len(rank) // num_choices) < share_of_decisions
    is_dropped = (rank > 0) & (rng.random(len(rank)) < share)
    is_dropped |= np.repeat(is_idle, num_choices)
    for name, value in (("expert", NO_EXPERT), ("weight", 0)):
        column = table.column(name).to_numpy().copy()
        column[is_dropped] = value
        kept = pa.array(column, type=table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, kept)
    return table


def drop_choices_by_rank(table: pa.Table, chances: Sequence[float], *, seed: int = 0) -> pa.Table:
    """Return rows of which some ran no expert, as those beyond an expert's capacity do.

    Args:
        chances: Of a choice to run none, by its rank.
    """
    rng = np.random.default_rng([seed, 9])
    is_gone = rng.random(table.num_rows) < np.array(chances)[table.column("rank").to_numpy()]
    experts = np.where(is_gone, NO_EXPERT, table.column("expert").to_numpy()).astype(np.int16)
    return table.set_column(table.column_names.index("expert"), "expert", pa.array(experts))
