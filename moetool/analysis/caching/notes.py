"""Sentences that a reader of a simulation should know."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.analysis.caching.simulation.policies import Policy
from moetool.analysis.caching.summary import Simulated
from moetool.printable import printable
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import number_of

_FEW_PROMPTS = 20


def explain_caching(
    reader: DecisionReader, result: Simulated, *, by: str | None, given: Sequence[str]
) -> tuple[str, ...]:
    """Return what was assumed, and why numbers are unknown.

    Args:
        by: Column of the groups; None if there are none.
        given: Sentences on the arguments.
    """
    notes = [*reader.notes]
    if "phase" not in reader.columns:
        notes.append(
            "The trace has no phases: prefill takes all of its tokens for prompts, and decode for "
            "generated tokens, in two separate simulations."
        )
    elif not result.first.num_decoded:
        notes.append(
            "The trace has no generated tokens: decode takes the tokens of the prompts one by one, "
            "in a separate simulation."
        )
    if not reader.has_ranks:
        notes.append("The trace has no ranks: LRU takes the first row of a token for its last use.")
    if result.num_mixed:
        notes.append(
            f"{number_of(result.num_mixed, 'token')} of prompts are counted in the group of the first "
            "token of their step, which is another than theirs."
        )
    if by is not None and Policy.LFU in result.policies and _has_groups(result):
        notes.append(
            "LFU counts uses since the beginning of the trace, so its hits by "
            f"{printable(by, max_length=60)} depend on the order of the prompts: in another order, "
            "other groups would have more."
        )
    notes += given
    if not result.is_fitted:
        notes.append(
            "Static sets are unknown with a single prompt: they are fitted on other prompts than "
            "they are scored on."
        )
    if len(reader.prompts) < _FEW_PROMPTS:
        notes.append(f"Fewer than {_FEW_PROMPTS} prompts: intervals are wide.")
    return tuple(dict.fromkeys(notes))


def _has_groups(result: Simulated) -> bool:
    """Return whether the steps of a phase belong to several groups."""
    return any(len(groups) > 1 for groups in result.groups)
