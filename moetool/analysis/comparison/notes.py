"""Sentences that a reader of a comparison should know."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.printable import printable
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import join_words, number_of


def explain_comparison(
    first: DecisionReader,
    second: DecisionReader,
    *,
    of_layers: Sequence[str],
    num_left_out: Sequence[int],
    num_single: int,
    has_ids: bool,
    has_weights: bool,
) -> tuple[str, ...]:
    """Return what was left out, and why numbers are unknown.

    Args:
        first: The reader of one trace, read to its end.
        second: The reader of the other.
        of_layers: Notes on layers.
        num_left_out: Tokens of each trace that were not compared.
        num_single: Decisions that only one of the traces has, or in which no expert ran.
        has_ids: Whether both traces have token ids.
        has_weights: Whether any weights could be compared.
    """
    readers = (first, second)
    notes = [f"'{printable(reader.path)}': {note}" for reader in readers for note in reader.notes]
    notes += of_layers
    for reader, number in zip(readers, num_left_out, strict=True):
        if number:
            notes.append(
                f"{number_of(number, 'token')} of '{printable(reader.path)}' not compared, because "
                "the other trace lacks them or has another token there or before."
            )
    if not has_ids:
        notes.append(
            f"{_name_without('token_id', readers)} has no token ids: tokens are taken to be the "
            "same because prompt and position are."
        )
    ranked = [reader for reader in readers if not reader.has_ranks]
    if ranked:
        names = join_words([f"'{printable(reader.path)}'" for reader in ranked], last="and")
        notes.append(
            f"First choices are unknown: {names} {'have' if len(ranked) > 1 else 'has'} no ranks "
            "that say which expert has the largest weight."
        )
    if num_single:
        notes.append(
            f"{number_of(num_single, 'decision')} not compared, because only one of the traces has "
            "them or because no expert ran."
        )
    if not has_weights:
        missing = [reader for reader in readers if "weight" not in reader.columns]
        notes.append(
            f"The change of weights is unknown: {_name_without('weight', readers)} has none."
            if missing
            else "The change of weights is unknown: no decision has the same experts in both."
        )
    if len(first.prompts) < 2:
        notes.append("Intervals are unknown with a single prompt: prompts are their unit.")
    return tuple(dict.fromkeys(notes))


def _name_without(column: str, readers: Sequence[DecisionReader]) -> str:
    return next(
        (f"'{printable(reader.path)}'" for reader in readers if column not in reader.columns),
        "one of the traces",
    )
