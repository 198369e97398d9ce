"""The confidence of the routers in a trace, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from moetool.analysis.confidence import measure as confidence
from moetool.analysis.confidence.result import Confidence
from moetool.library.opening import open_reader

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace


def measure_confidence(
    trace: GivenTrace,
    *,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Confidence:
    """Return how much of a decision's weight its first choice has, layer by layer.

    `moetool plot confidence` draws it.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer`, `expert` and `weight`; a `Trace`; or the path of a
            trace.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Raises:
        InputError: There is no trace, it has no weights, or it fails a check.
        UsageError: An argument is out of range, or there is no such layer.
    """
    reader = open_reader(
        trace,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=confidence.COLUMNS,
    )
    return confidence.measure_confidence(reader)
