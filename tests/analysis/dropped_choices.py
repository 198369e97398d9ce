"""Traces in which some choices ran no expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from moetool.trace.decisions import NO_EXPERT


def drop_choices(table: pa.Table, chances: Sequence[float], *, seed: int = 0) -> pa.Table:
    """Return rows of which some ran no expert, as those beyond an expert's capacity do.

    Args:
        chances: Of a choice to run none, by its rank.
    """
    rng = np.random.default_rng([seed, 9])
    is_gone = rng.random(table.num_rows) < np.array(chances)[table.column("rank").to_numpy()]
    experts = np.where(is_gone, NO_EXPERT, table.column("expert").to_numpy()).astype(np.int16)
    return table.set_column(table.column_names.index("expert"), "expert", pa.array(experts))
