"""The balance of a trace or a load table, wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.analysis.balance import measure as balance
from moetool.analysis.balance.result import Balance
from moetool.choices import take_count, take_text
from moetool.errors import UsageError
from moetool.library.opening import open_any, open_reader, take_layers, take_shape
from moetool.library.trace import Trace
from moetool.printable import printable
from moetool.trace.loads.steps import read_step_loads
from moetool.trace.loads.table import LoadTable, is_load_table, open_loads
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.layer_shapes import check_layers
from moetool.trace.reading.probabilities import ProbabilitySource, find_probabilities

if TYPE_CHECKING:
    import pandas as pd

_DOMAIN = "domain"
_MOST_TOKENS = 1 << 40


def measure_balance(
    trace: pd.DataFrame | Trace | str | PathLike[str],
    *,
    by: str = _DOMAIN,
    layers: Collection[int] | None = None,
    tokens_per_batch: int | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Balance:
    """Return how evenly the experts of each layer share the work, as `moetool balance` does.

    Probabilities that `route-trace --probabilities` wrote next to a trace, or that a `Trace` holds,
    are read too: they give the auxiliary losses.

    Args:
        trace: A DataFrame from `read_trace`, `Trace.to_frame` or elsewhere with the columns
            `prompt_id`, `position`, `layer` and `expert`; a `Trace`; the path of a trace; or that
            of a load table, which has counts but no tokens.
        by: Column that groups the tokens.
        layers: Layer numbers to read; None for all.
        tokens_per_batch: Consecutive tokens that make a batch. By default each prompt is one: a
            trace doesn't record which prompts ran together.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has, such as rows that occur twice.

    Raises:
        InputError: There is no trace, or it fails a check.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    tokens = take_count(
        tokens_per_batch,
        name="number of tokens per batch",
        smallest=1,
        largest=_MOST_TOKENS,
        is_optional=True,
    )
    by = take_text(by, name="column to group by")
    if isinstance(trace, str | PathLike) and is_load_table(Path(trace)):
        experts, k = take_shape(num_experts=num_experts, top_k=top_k)
        if by != _DOMAIN or tokens is not None:
            raise UsageError(
                f"'{printable(trace)}' is a load table: it has no tokens to group or to batch.",
                hint="Leave out --by and --tokens-per-batch (by= and tokens_per_batch= in Python).",
            )
        return _measure_loads(
            open_loads(Path(trace)), layers=take_layers(layers), num_experts=experts, top_k=k
        )
    reader = open_reader(
        trace,
        by=by,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=balance.COLUMNS,
    )
    probabilities, reason = _find_probabilities(trace)
    return balance.measure_balance(
        reader,
        by=by,
        tokens_per_batch=tokens,
        probabilities=probabilities,
        why_no_probabilities=reason,
    )


def _find_probabilities(trace: object) -> tuple[ProbabilitySource | None, str]:
    """Return the probabilities of a trace, or None and the reason if it isn't the usual one."""
    if isinstance(trace, Trace) and trace.path is None:
        if not trace.probabilities:
            return None, ""
        function = trace.metadata.score_function
        return ProbabilitySource(Path("trace"), function, trace.probabilities), ""
    if isinstance(trace, Trace | str | PathLike):
        source = open_any(trace)
        if source.path.is_dir():
            return None, "those of a folder of parts are not read"
        return find_probabilities(source), ""
    return None, "a DataFrame has no file of probabilities next to it; give the trace's path"


def _measure_loads(
    table: LoadTable,
    *,
    layers: Collection[int] | None,
    num_experts: int | None,
    top_k: int | None,
) -> Balance:
    counts = table.to_counts(num_experts=num_experts, top_k=top_k, needs_top_k=False)
    counts = _choose_layers(counts, layers, path=table.path)
    steps = read_step_loads(
        table, {(layer.stack, layer.layer): layer.num_experts for layer in counts.layers}
    )
    return balance.measure_balance_of_counts(
        counts, facts=table.describe(counts.layers), steps=steps
    )


def _choose_layers(
    counts: ExpertCounts, asked: Collection[int] | None, *, path: Path
) -> ExpertCounts:
    if asked is None:
        return counts
    check_layers(path, (layer.layer for layer in counts.layers), asked)
    return ExpertCounts(
        groups=counts.groups,
        domains=counts.domains,
        layers=tuple(layer for layer in counts.layers if layer.layer in asked),
        notes=counts.notes,
    )
