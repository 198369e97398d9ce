"""Numbers as the page shows them, compared with those of a result."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

# The page carries five significant digits, and rounds those once more.
_CARRIED = 5e-5
_SCALES = {"%": 1e2, "K": 1e-3, "M": 1e-6, "B": 1e-9, "T": 1e-12}
_NUMBER = re.compile(r"(?P<digits>-?[\d,]+(?:\.(?P<places>\d+))?)(?P<unit>[%×KMBT]?)")


def shows(text: str, value: float | None) -> bool:
    """Return whether a text is a number, rounded to its last digit; `unknown` for None."""
    if value is None or not math.isfinite(value):
        return text in ("unknown", "–")
    if text == "<0.1%":
        return 0 < value < 0.0005
    found = _NUMBER.fullmatch(text)
    if found is None:
        return False
    scale = _SCALES.get(found["unit"], 1)
    last = 0.5 * 10.0 ** -len(found["places"] or "")
    number = float(found["digits"].replace(",", ""))
    return abs(number - scale * value) <= last * 1.000001 + _CARRIED * abs(scale * value)


def differences(
    texts: Sequence[str], values: Sequence[str | float | None]
) -> list[tuple[str, str | float | None]]:
    """Return pairs of a text and a value that it does not show; lengths must be equal."""
    return [
        (text, value)
        for text, value in zip(texts, values, strict=True)
        if not (text == value if isinstance(value, str) else shows(text, value))
    ]


def interval(text: str) -> tuple[str, str] | None:
    """Return both limits of an interval in words; None if it is unknown."""
    found = re.fullmatch(r"(\S+) to (\S+)", text)
    return (found[1], found[2]) if found else None
