"""Traces that are given as a path, a DataFrame or a `Trace`, opened to be read."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from typing import TYPE_CHECKING, Any

from moetool.choices import take_count, take_flag, take_path, take_text
from moetool.errors import UsageError
from moetool.library.trace import Trace
from moetool.trace.metadata_fields import LARGEST_ID, MOST_IDS
from moetool.trace.reading.frames import open_frame
from moetool.trace.reading.reader import TraceSource, open_trace
from moetool.trace.windows.reader import DecisionReader

if TYPE_CHECKING:
    import pandas as pd

    GivenTrace = pd.DataFrame | Trace | str | PathLike[str]

_DOMAIN = "domain"


def open_any(trace: GivenTrace, *, by: str = _DOMAIN) -> TraceSource:
    """Return the trace that a path names, or that a DataFrame or a `Trace` holds.

    Args:
        trace: As the public functions take it.
        by: A column to keep in addition to those of a trace, for a DataFrame that has it.

    Raises:
        InputError: There is no trace at the path, or the frame is not a trace.
        UsageError: The trace is of another type.
    """
    import pandas as pd

    if isinstance(trace, pd.DataFrame):
        return open_frame(trace, extra=[by])
    if isinstance(trace, Trace):
        return trace.open()
    return open_trace(take_path(trace, name="trace"))


def open_reader(
    trace: GivenTrace,
    *,
    by: str = _DOMAIN,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
    columns: Collection[str] = (),
) -> DecisionReader:
    """Return a reader of a trace's decisions, after checking the arguments of a public function.

    Args:
        trace: As the public functions take it.
        by: Column that groups the tokens.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.
        columns: As `DecisionReader` takes them.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    by = take_text(by, name="column to group by")
    num_experts, top_k = take_shape(num_experts=num_experts, top_k=top_k)
    return DecisionReader(
        open_any(trace, by=by),
        by=by,
        layers=take_layers(layers),
        num_experts=num_experts,
        top_k=top_k,
        columns=columns,
        is_checked=take_flag(validate, name="validate"),
    )


def take_shape(*, num_experts: object, top_k: object) -> tuple[int | None, int | None]:
    """Return the number of experts and top-k that a user states for rows without metadata.

    Raises:
        UsageError: One of them is not a number in range.
    """
    return (
        take_count(
            num_experts, name="number of experts", smallest=1, largest=MOST_IDS, is_optional=True
        ),
        take_count(top_k, name="top-k", smallest=1, largest=MOST_IDS, is_optional=True),
    )


def take_layers(layers: Any) -> frozenset[int] | None:
    """Return layer numbers; None for None.

    Raises:
        UsageError: They are not a collection of numbers in range, or empty.
    """
    if layers is None:
        return None
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        raise UsageError(
            "Layers are given as a collection of numbers.", hint="Give a list, such as [0, 2]."
        )
    numbers = frozenset(
        take_count(layer, name="layer", smallest=0, largest=LARGEST_ID) for layer in layers
    )
    if not numbers:
        raise UsageError("No layers are given.", hint="Leave them out to read all.")
    return numbers
