"""Parse values that Typer has no type for."""

from __future__ import annotations

from moetool.errors import UsageError

# Far more layers than any model has; a typo must not fill the memory.
_LARGEST_LAYER = 100_000
# Far more digits than any size has, and far fewer than Python refuses to parse.
_MOST_DIGITS = 20


def parse_layers(text: str | None) -> frozenset[int] | None:
    """Return the layer numbers in a text like `0,2-5`; None for None.

    Raises:
        UsageError: The text is not a list of layers.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(
                f"--layers: '{part.strip()}' is not a layer number or range.",
                hint="Write layers as in 0,2-5.",
            )
        start, end = int(first), int(last or first)
        if end < start or end > _LARGEST_LAYER:
            raise UsageError(
                f"--layers: '{part.strip()}' is not a range of layers.",
                hint="Write the smaller number first, as in 0,2-5.",
            )
        layers.update(range(start, end + 1))
    return frozenset(layers)


def parse_optional_numbers(text: str | None, *, option: str) -> tuple[int, ...]:
    """Return the whole numbers in a text like `1,8,32`; none for None.

    Raises:
        UsageError: The text is not a list of whole numbers.
    """
    return () if text is None else parse_numbers(text, option=option)


def parse_numbers(text: str, *, option: str) -> tuple[int, ...]:
    """Return the whole numbers in a text like `1,8,32`.

    Raises:
        UsageError: The text is not a list of whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > _MOST_DIGITS:
            raise UsageError(
                f"{option}: '{part}' is not a whole number.",
                hint="Write whole numbers as in 1,8,32.",
            )
    return tuple(map(int, parts))
