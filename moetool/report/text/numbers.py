"""Format numbers for people. JSON and CSV never pass through here."""

from __future__ import annotations

from moetool.printable import number_of, printable


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


def format_number_of(count: int, noun: str) -> str:
    """Return a count with its noun, which has a regular plural: `1 prompt`, `1,200 tokens`."""
    return number_of(count, noun)


def format_p_value(value: float, *, num_permutations: int) -> str:
    """Return a p-value. The smallest that the permutations can give is shown as a bound."""
    smallest = 1 / (1 + num_permutations)
    if value <= smallest:
        return f"≤ {smallest:.2g}"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.2g}"


def format_place(stack: str, layer: int, expert: int) -> str:
    """Return the short name of an expert: `L3.E5`, after its stack unless that is the decoder."""
    return f"{format_stack(stack)}L{layer}.E{expert}"


def format_stack(stack: str) -> str:
    """Return the prefix for layers of a stack: nothing for the decoder, else its name."""
    return "" if stack == "decoder" else f"{printable(stack, max_length=40)} "
