"""Co-activation of experts in a trace, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.coactivation import measure as coactivation
from moetool.analysis.coactivation.result import Coactivation
from moetool.choices import take_count
from moetool.library.opening import open_reader
from moetool.library.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_MOST_PAIRS = 1_000_000


def measure_coactivation(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    by: str = "domain",
    layers: Collection[int] | None = None,
    num_listed: int = 100,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Coactivation:
    """Return which experts are chosen together, as `moetool coactivation` does.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer` and `expert`; a `Trace`; or the path of a trace.
        by: The column that groups tokens.
        layers: Layer numbers to read; None for all. The next layer is then the next of these.
        num_listed: Pairs in each list; `to_frame` has all of them.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Returns:
        Pairs with counts, lifts and their tests, groups of experts, and the prediction of the next
        layer's experts; as a frame, one row for each pair.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    most = take_count(num_listed, name="number of pairs", smallest=1, largest=_MOST_PAIRS)
    reader = open_reader(
        trace, by=by, layers=layers, num_experts=num_experts, top_k=top_k, validate=validate
    )
    return coactivation.measure_coactivation(reader, by=by, num_listed=most)
