"""A tokenizer's pieces as pages show them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from moetool.analysis.tokens.pieces import read_piece
from moetool.printable import printable
from moetool.report.text.styles import Style

_LONGEST_TOKEN = 24
# Of a context, on each side of the token.
_LONGEST_SIDE = 24


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
