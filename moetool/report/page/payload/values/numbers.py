"""Numbers as the page carries them: with the digits that it shows, and a few more."""

from __future__ import annotations

import math
from collections.abc import Iterable

# Significant digits; the page shows three at most.
_DIGITS = 6


def shorten(value: float | None) -> float | int | None:
    """Return a number with few digits; None for what is unknown or infinite."""
    if value is None or not math.isfinite(value):
        return None
    if isinstance(value, int):
        return value
    short = float(f"{value:.{_DIGITS}g}")
    if not math.isfinite(short):
        return value  # The largest numbers round up to infinity, which JSON lacks.
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def shorten_all(values: Iterable[float | None]) -> list[float | int | None]:
    """Return numbers with few digits each."""
    return [shorten(value) for value in values]
