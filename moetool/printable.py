"""Text from files and arguments, made safe to show on a terminal."""

from __future__ import annotations

import json
import re

# What may not be: letters of all languages are among them.
_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e]")


def printable(text: object, *, max_length: int = 200) -> str:
    r"""Return a text on one line, without characters that steer a terminal, cut to a length.

    Control characters, line separators, invisible and direction-changing characters and halves of
    surrogate pairs become visible escapes such as `\x1b`, `\n` and `\u202e`. A longer text loses
    its middle to an ellipsis: both ends of a path or of a sentence say what it is.

    Args:
        text: Anything; what is not a text is shown as `str` has it.
        max_length: Of the result, in characters.
    """
    whole = str(text)
    # Cut before escaping as well, so that a text of gigabytes costs nothing.
    shown = _cut(whole, max_length)
    if shown.isprintable():
        return shown
    return _cut("".join(map(_escape, shown)), max_length)


def escape_json(text: str) -> str:
    r"""Return JSON that reads the same and steers no terminal, as one character or two `\uXXXX`.

    `json.dumps` escapes only the first 32 characters. Lines and indents are kept.
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
