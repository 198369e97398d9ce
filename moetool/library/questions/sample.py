"""Whole prompts of a trace with all their decisions, from a trace wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from moetool.analysis.sampling import measure as sampling
from moetool.analysis.sampling.result import PromptSample
from moetool.choices import take_count
from moetool.library.opening import open_any, open_reader
from moetool.trace.windows.prompt_groups import read_prompt_groups

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

# Experts of all tokens that are easily held in memory and looked at.
MOST_ASSIGNMENTS = 700_000
_MOST = 1 << 40


def sample_prompts(
    trace: GivenTrace,
    *,
    most_assignments: int = MOST_ASSIGNMENTS,
    like: PromptSample | None = None,
    by: str = "domain",
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> PromptSample:
    """Return whole prompts of a trace with all their decisions, as `moetool report` shows them.

    Groups of prompts take turns. Within a group, the choice depends on the ids of the prompts and
    on nothing else, so that traces of the same prompts give the same sample. If even the shortest
    prompt is too long, its first tokens are the sample.

    Args:
        trace: A DataFrame, a `Trace`, or the path of a trace.
        most_assignments: Experts of all tokens in all layers of the sample; one token has more if
            it must.
        like: A sample of another trace, whose prompts are taken, with as many of their first
            tokens; None to choose.
        by: The column that groups prompts.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.

    Raises:
        InputError: There is no trace, it fails a check, or it has none of the prompts of `like`.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    most = take_count(most_assignments, name="number of assignments", smallest=1, largest=_MOST)
    reader = open_reader(
        trace,
        by=by,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=sampling.COLUMNS,
    )
    groups = read_prompt_groups(open_any(trace, by=by), reader.prompts, by=by)
    return sampling.sample_prompts(reader, groups, by=by, most_assignments=most, like=like)
