"""Explain the values of options that can't be read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moetool.cli.usage.near_misses import hint_at_value

# Typer's own messages, with the words that they quote.
_CHOICE = re.compile(r"(?:Value error, )?['\"](.*)['\"] is not one of (.*?)\.?", re.S)
_LOWER_LIMIT = re.compile(r"greater than or equal to (\S+)|range x>=(\S+?)\.")
_UPPER_LIMIT = re.compile(r"less than or equal to (\S+)|range x<=(\S+?)\.")


def explain_value(message: str, option: str, words: Sequence[str]) -> tuple[str, str] | None:
    """Explain a value that an option can't have; None for what Typer says well itself."""
    choice = _CHOICE.fullmatch(message)
    if choice:
        choices = re.findall(r"['\"]?([\w-]+)['\"]?", choice[2])
        return f"{option} can't be '{choice[1]}'.", hint_at_value(choice[1], option, choices)
    value = _find_value(option, words)
    if value is None:
        return None
    sentence = f"{option} can't be '{value}'."
    lower, upper = _LOWER_LIMIT.search(message), _UPPER_LIMIT.search(message)
    if lower:
        return sentence, f"Give a number of at least {lower[1] or lower[2]}."
    if upper:
        return sentence, f"Give a number of at most {upper[1] or upper[2]}."
    if "integer" in message:
        return sentence, "Give a whole number."
    if "number" in message or "float" in message:
        return sentence, "Give a number."
    return None


def _find_value(option: str, words: Sequence[str]) -> str | None:
    """Return the value of an option on a command line."""
    for number, word in reversed(list(enumerate(words))):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and number + 1 < len(words):
            return words[number + 1]
    return None


def find_sizes(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return an option with several numbers that spaces separate, and the numbers.

    None if a command line has no such option.
    """
    for number, word in enumerate(words):
        if word.startswith("--"):
            option, _, first = word.partition("=")
            following = [first] if first else []
            for value in words[number + 1 :]:
                if not re.fullmatch(r"[\d,]+", value):
                    break
                following.append(value)
            sizes = [size for value in following for size in value.split(",") if size]
            if len(following) > 1 and sizes:
                return option, sizes
    return None
