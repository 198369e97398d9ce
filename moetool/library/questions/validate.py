"""The checks of a trace, wherever its rows are."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.validation.measure import validate_source
from moetool.analysis.validation.result import Validation
from moetool.library.opening import open_any
from moetool.library.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


def validate_trace(trace: pd.DataFrame | Trace | str | PathLike[str]) -> Validation:
    """Return all checks of a trace, what it is, and what it can answer, as `moetool validate` does.

    A failed check raises nothing: see `is_valid` and `checks` of the result.

    Args:
        trace: A DataFrame from `read_trace(…, validate=False)` or elsewhere with the columns
            `prompt_id`, `position`, `layer` and `expert`; a `Trace`; or the path of a trace.

    Returns:
        The checks, each with the first fault; as a frame, one row for each check.

    Raises:
        InputError: There is no trace, a file can't be read, or it holds no rows.
        UsageError: The trace is of another type.
    """
    return validate_source(open_any(trace))
