"""Sentences that go with a comparison of placements."""

from __future__ import annotations

from collections.abc import Iterator

from moetool.analysis.placement.result import Placement
from moetool.analysis.placement.summary import SentBytes
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.wording import number_of

# Of the tokens: one domain decides the load.
_DOMINANT = 0.8
# Prompts or steps held out.
_ENOUGH = 20

_TRANSFER = "load balance does not carry over to other domains, co-activation mostly does."


def list_notes(result: Placement, *, has_groups: bool, sent: SentBytes) -> tuple[str, ...]:
    """Return warnings, and why numbers are None.

    Args:
        result: Of a trace, without notes.
        has_groups: Whether the trace has the column that groups prompts.
        sent: The source of the size of a token.
    """
    reasons = (sent.reason,) if sent.reason else ()
    warnings = (*_warn_of_groups(result, has_groups=has_groups), *_warn_of_sizes(result))
    return (_say_fitted(result), *warnings, *reasons)


def _say_fitted(result: Placement) -> str:
    split = result.split
    if split.unit is None:
        return (
            "The trace has a single prompt, so none is held out: scores are of the prompt that the "
            "placements were fitted on, and whether they are better than chance is unknown. Even "
            "there, a method can score worse than contiguous placement: EPLB evens out the load of "
            "all tokens together, not that of each batch, and ignores traffic; co-activation weighs "
            "traffic against even loads."
        )
    by = printable(result.by or "", max_length=60)
    return (
        f"Scores are of placements fitted on {number_of(split.num_fitted, split.unit)} and scored on "
        f"{number_of(split.num_held_out, 'other')}, half of each {by}; physical_to_logical and "
        "exports are fitted on all."
    )


def _warn_of_groups(result: Placement, *, has_groups: bool) -> Iterator[str]:
    if result.split.unit is None:
        return  # A single prompt is of one group.
    if not has_groups:
        yield f"The trace has no column {result.by} that says whether texts are mixed: {_TRANSFER}"
        return
    num_tokens = sum(group.num_tokens for group in result.groups)
    first = result.groups[0]
    by = printable(result.by or "", max_length=60)
    name = f"{by}, '{printable(first.group, max_length=60)}'"
    if len(result.groups) == 1 and first.group == NO_DOMAIN:
        yield f"No prompt has a value of {by} that says whether texts are mixed: {_TRANSFER}"
    elif len(result.groups) == 1:
        yield f"All prompts are of one {name}: {_TRANSFER}"
    elif first.num_tokens >= _DOMINANT * num_tokens:
        yield f"{first.num_tokens / num_tokens:.0%} of the tokens are of one {name}: {_TRANSFER}"


def _warn_of_sizes(result: Placement) -> Iterator[str]:
    split = result.split
    if split.unit is not None and split.num_held_out < _ENOUGH:
        yield (
            f"Only {number_of(split.num_held_out, split.unit)} held out: the scores of another "
            "half may differ."
        )
    if result.tokens_per_batch is not None and not result.num_batches:
        yield (
            f"Batch imbalance is unknown: the prompts that are scored don't fill a batch of "
            f"{number_of(result.tokens_per_batch, 'token')}."
        )
    if result.cluster.num_nodes > 1 and not result.cluster.keeps_groups_together:
        yield (
            f"EPLB ignores nodes here: {number_of(result.cluster.num_nodes, 'node')} can't share "
            f"{number_of(result.cluster.num_groups, 'group')} of experts evenly."
        )
    if any(layer.top_k == 1 for layer in result.layers):
        yield "A top-1 router chooses no pairs: co-activation only spreads load there."
