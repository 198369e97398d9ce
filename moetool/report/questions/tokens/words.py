"""Pieces and numbers as the pages on tokens show them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from moetool.analysis.tokens.pieces import read_piece
from moetool.printable import printable
from moetool.report.text.numbers import format_stack
from moetool.report.text.styles import Style
from moetool.trace.facts import LayerFacts

_LONGEST_TOKEN = 24
# Of a context, on each side of the token.
_LONGEST_SIDE = 24
# In a column of numbers; a word would widen it.
_UNKNOWN = "–"


def show_token(piece: str | None, token_id: int) -> str:
    """Return the text that a token stands for, in quotes, or its id."""
    if piece is None:
        return f"id {token_id}"
    return f"'{printable(read_piece(piece), max_length=_LONGEST_TOKEN)}'"


def show_context(
    before: Sequence[str | None], token: str | None, after: Sequence[str | None]
) -> Text:
    """Return a token between those around it, with the token in brackets and emphasized."""
    first = _join(before)[-_LONGEST_SIDE:]
    last = _join(after)[:_LONGEST_SIDE]
    middle = "?" if token is None else printable(read_piece(token), max_length=_LONGEST_TOKEN)
    return Text.assemble((first, Style.MUTED), (f"[{middle}]", Style.STRONG), (last, Style.MUTED))


def _join(pieces: Sequence[str | None]) -> str:
    return printable(
        "".join("?" if piece is None else read_piece(piece) for piece in pieces), max_length=400
    )


def show_layer(layer: LayerFacts) -> str:
    """Return the number of a layer, after its stack unless that is the decoder."""
    return f"{format_stack(layer.stack)}{layer.layer}"


def show_share(share: float | None) -> str:
    """Return a share as a percentage, or a dash; never `0.0%` for a share above zero."""
    if share is None:
        return _UNKNOWN
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
