"""The agreement of two traces of the same tokens, wherever their rows are."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from moetool.analysis.comparison import measure as comparison
from moetool.analysis.comparison.result import Comparison
from moetool.choices import take_count, take_flag
from moetool.library.opening import open_reader

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

_MOST_LISTED = 1_000
_LARGEST_COUNT = 1_000_000_000


def compare_traces(
    trace: GivenTrace,
    other: GivenTrace,
    *,
    by: str = "domain",
    layers: Collection[int] | None = None,
    common_tokens: bool = False,
    min_count: int = 10,
    num_listed: int = 10,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Comparison:
    """Return how far two traces of the same tokens choose the same experts.

    The traces are of two models of the same shape, quantizations, checkpoints or engines. Layers
    that both have are compared, if they have the same number of experts. Tokens are matched by
    prompt and position, and must have the same ids.

    Args:
        trace: A DataFrame, a `Trace`, or the path of one. If one is a reference, such as the last
            checkpoint, give it second.
        other: The other trace.
        by: The column of the first trace that groups the tokens.
        layers: Layer numbers to compare; None for all.
        common_tokens: Compare the tokens that both traces have, and leave out the others and those
            of a prompt after the first one that differs. By default, such traces are refused.
        min_count: Occurrences that a token id needs to be listed.
        num_listed: Token ids, and single tokens, that changed most to list.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.

    Raises:
        InputError: There is no trace, it fails a check, the tokens differ, or no layer can be
            compared.
        UsageError: An argument is out of range, or there is no such column or layer.
    """
    is_common = take_flag(common_tokens, name="common_tokens")
    least = take_count(min_count, name="number of occurrences", smallest=1, largest=_LARGEST_COUNT)
    listed = take_count(num_listed, name="number of tokens", smallest=1, largest=_MOST_LISTED)
    first, second = (
        open_reader(
            given,
            by=column,
            layers=layers,
            num_experts=num_experts,
            top_k=top_k,
            validate=validate,
            columns=comparison.COLUMNS,
        )
        for given, column in ((trace, by), (other, "domain"))
    )
    return comparison.compare_traces(
        first,
        second,
        by=by,
        is_common=is_common,
        min_count=least,
        num_listed=listed,
    )
