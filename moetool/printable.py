"""Make text from files and arguments safe to show on a terminal."""

from __future__ import annotations

import json
import re

# Characters that may be unprintable; letters of most languages are among them.
_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e]")


def printable(text: object, *, max_length: int = 200) -> str:
    r"""Return text on one line, without characters that steer a terminal, cut to a length.

    Control characters, line separators, invisible and direction-changing characters and halves of
    surrogate pairs become visible escapes such as `\x1b`, `\n` and `\u202e`. In a text that is too
    long, an ellipsis replaces the middle: both ends of a path or a sentence say what it is.

    Args:
        text: Any object; all but strings are converted with `str`.
        max_length: Length of the result, in characters.
    """
    whole = str(text)
    # Cut before escaping as well, so that gigabytes of text cost nothing.
    shown = _cut(whole, max_length)
    if shown.isprintable():
        return shown
    return _cut("".join(map(_escape, shown)), max_length)


def escape_json(text: str) -> str:
    r"""Return JSON in which unprintable characters are escaped as `\uXXXX`; it parses to the same.

    `json.dumps` escapes only the first 32 code points. Line breaks and indents are kept.
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
