"""Numbers and lists in the words of reports, messages and reprs. JSON and CSV have none of these."""

from __future__ import annotations

from collections.abc import Sequence


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, which has a regular plural: `1 prompt`, `1,200 tokens`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def join_words(words: Sequence[str], *, last: str) -> str:
    """Return words as a sentence lists them: `a, b or c` if the last word is `or`."""
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end


def format_bytes(num_bytes: int) -> str:
    """Return bytes with a binary unit: `87.0 GiB`."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        # A size that would round to 1024.0 is 1.0 of the next unit.
        if size < (1024 if unit == "bytes" else 1023.95):
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def format_count(number: float) -> str:
    """Return a number of parameters or FLOPs in four digits with a decimal unit: `46.70B`.

    Numbers beyond any model's get an exponent: `1.234e+18`.
    """
    if number >= 999.95e12:
        return f"{number:.3e}"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        # A number that would round to 1000 is 1.000 of the next unit.
        if number >= 0.99995 * size:
            scaled = number / size
            digits = 3 if scaled < 9.9995 else 2 if scaled < 99.995 else 1
            return f"{scaled:.{digits}f}{unit}"
    return f"{number:.0f}"
