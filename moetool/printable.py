"""Text from files and arguments, made safe to show on a terminal."""

from __future__ import annotations

import json
import re

# Candidates only: letters of all languages are printable.
_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e]")


def printable(text: object, *, max_length: int = 200) -> str:
    r"""Return a text on one line, without characters that steer a terminal, cut to a length.

    Control characters, line separators, invisible and direction-changing characters and halves of
    surrogate pairs become visible escapes such as `\x1b`, `\n` and `\u202e`. In a longer
    text, an ellipsis replaces the middle: the ends of a path or sentence are what identify it.

    Args:
        text: A text, or an object that is shown by its `str`.
        max_length: Longest result, in characters.
    """
    whole = str(text)
    # Also cut before escaping, so that a text of gigabytes costs nothing.
    shown = _cut(whole, max_length)
    if shown.isprintable():
        return shown
    return _cut("".join(map(_escape, shown)), max_length)


def printable_number(number: int) -> str:
    """Return a whole number from a file with its thousands marked, `12,000`.

    One of hundreds of digits, which JSON may hold as well, loses its middle to an ellipsis.
    """
    return f"{number:,}" if abs(number) < 10**18 else printable(number, max_length=30)


def escape_json(text: str) -> str:
    r"""Return the same JSON with characters that steer a terminal written as `\uXXXX`.

    `json.dumps` escapes only the first 32 characters. Lines and indentation are kept.
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text
    )


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    tail = (max_length - 1) // 3
    head = max_length - 1 - tail
    return f"{text[:head]}…{text[len(text) - tail :]}"
