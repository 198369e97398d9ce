"""Traces in which some choices ran no expert, so that decisions have fewer than top-k."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def shorten_decisions(table: pa.Table, *, share: float, seed: int = 0) -> pa.Table:
    """Return a trace in which a share of the choices of each layer and rank ran no expert.

    First choices always run.
    """
    rng = np.random.default_rng(seed)
    layer, rank = table.column("layer").to_numpy(), table.column("rank").to_numpy()
    expert, weight = (table.column(name).to_numpy().copy() for name in ("expert", "weight"))
    for number in np.unique(layer):
        for place in range(1, int(rank.max()) + 1):
            (mine,) = np.nonzero((layer == number) & (rank == place))
            dropped = rng.choice(mine, size=round(share * len(mine)), replace=False)
            expert[dropped], weight[dropped] = -1, 0
    for name, values in (("expert", expert), ("weight", weight)):
        index = table.column_names.index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values))
    return table
