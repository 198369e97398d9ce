"""Put values that may be unknown into a word or two, the same in every report."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.wording import format_bytes, format_count

UNKNOWN = "unknown"


def word_size(num_bytes: int | None) -> str:
    """Return bytes with a binary unit, or `unknown`."""
    return UNKNOWN if num_bytes is None else format_bytes(num_bytes)


def word_count(number: float | None) -> str:
    """Return a number of parameters or FLOPs with a decimal unit, or `unknown`."""
    return UNKNOWN if number is None else format_count(number)


def word_share(share: float) -> str:
    """Return a share of a whole: `96.6%`, and never `0.0%` for a share above zero."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def word_range(numbers: Sequence[int]) -> str:
    """Return numbers as one if they are equal, else as the range they span: `7`, `4 to 7`."""
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
