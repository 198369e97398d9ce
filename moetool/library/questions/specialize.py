"""The specialization of experts in a trace, wherever its rows are."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.specialization import measure as specialization
from moetool.analysis.specialization.measure import Specialization
from moetool.choices import take_count, take_flag, take_path, take_text
from moetool.errors import InputError, UsageError
from moetool.library.opening import take_shape
from moetool.library.trace import Trace
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.frames import open_frame
from moetool.trace.reading.reader import TraceSource, open_trace

if TYPE_CHECKING:
    import pandas as pd

# Beyond what anyone waits for.
_MOST_PERMUTATIONS = 10_000_000
_NUM_SEEDS = 1 << 64


def measure_specialization(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    by: str = "domain",
    num_permutations: int = 999,
    seed: int = 0,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Specialization:
    """Return how far experts specialize by domain, as `moetool specialize` does.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer` and `expert`; a `Trace`; or the path of a trace.
        by: The column that holds each prompt's domain. One other than `domain` takes a DataFrame.
        num_permutations: Permutations of the prompts' labels for each p-value.
        seed: Random seed of the permutations.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Raises:
        InputError: There is no trace, it fails a check, or it has fewer than two domains.
        UsageError: An argument is out of range, or there is no such column.
    """
    by = take_text(by, name="column of the domains")
    permutations = take_count(
        num_permutations, name="number of permutations", smallest=1, largest=_MOST_PERMUTATIONS
    )
    chosen_seed = take_count(seed, name="seed", smallest=0, largest=_NUM_SEEDS - 1)
    num_experts, top_k = take_shape(num_experts=num_experts, top_k=top_k)
    validate = take_flag(validate, name="validate")
    source, name = _open(trace, by=by)
    if "domain" not in source.columns:
        raise InputError(
            f"{f'{name!r}' if name else 'The frame'} has no column 'domain' to group by.",
            hint="Add one with the label of each row's prompt, or name another with by=.",
        )
    counts = count_experts(
        source, by="prompt_id", num_experts=num_experts, top_k=top_k, validate=validate
    )
    result = specialization.measure_specialization(
        counts, num_permutations=permutations, seed=chosen_seed
    )
    return replace(result, trace=name)


def _open(trace: object, *, by: str) -> tuple[TraceSource, str | None]:
    import pandas as pd

    if isinstance(trace, pd.DataFrame):
        return open_frame(trace, by=by), None
    if by != "domain":
        raise UsageError(
            f"The column '{by}' is not one of a stored trace.",
            hint="Add it to the DataFrame that read_trace returns, and give that.",
        )
    if isinstance(trace, Trace):
        return trace.open(), None if trace.path is None else str(trace.path)
    path = take_path(trace, name="trace")
    return open_trace(path), str(path)
