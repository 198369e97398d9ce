"""Sentences that a reader of a simulation should know."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.analysis.caching.summary import Simulated
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import number_of

_FEW_PROMPTS = 20


def explain_caching(
    reader: DecisionReader, result: Simulated, *, given: Sequence[str]
) -> tuple[str, ...]:
    """Return what was assumed, and why numbers are unknown.

    Args:
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
    notes += given
    if not result.is_fitted:
        notes.append(
            "Static sets are unknown with a single prompt: they are fitted on other prompts than "
            "they are scored on."
        )
    if len(reader.prompts) < _FEW_PROMPTS:
        notes.append(f"Fewer than {_FEW_PROMPTS} prompts: intervals are wide.")
    return tuple(dict.fromkeys(notes))
