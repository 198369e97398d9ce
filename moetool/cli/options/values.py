"""Parse values that Typer has no type for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from decimal import Decimal

import typer

from moetool.cli.usage.values import find_sizes
from moetool.errors import UsageError
from moetool.memory.scenario import Attention, Dtype

_PARAMETERS = re.compile(
    r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?)\s*(?P<unit>[kmbt])", re.IGNORECASE
)
_PARAMETERS_PER_UNIT = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

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
    if any(len(part) == 3 and part.isdecimal() and part.startswith("0") for part in parts[1:]):
        raise UsageError(
            f"{option}: '{text}' is read as several numbers.",
            hint=f"Write thousands without a comma: {''.join(parts)}.",
        )
    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > _MOST_DIGITS:
            raise UsageError(
                f"{option}: '{part}' is not a whole number.",
                hint="Write whole numbers as in 1,8,32.",
            )
    return tuple(map(int, parts))


def refuse_loose_sizes(models: Sequence[str], words: Sequence[str]) -> None:
    """Refuse sizes that spaces separate, which are read as names of models.

    Args:
        models: The names of models, as given.
        words: The whole command line.

    Raises:
        UsageError: A model is a number that follows the value of an option.
    """
    numbers = [name for name in models if name.strip(",").isdecimal() and not os.path.exists(name)]
    sizes = find_sizes(words)
    if numbers and sizes is not None:
        raise UsageError(
            f"'{numbers[0]}' is a number, not a model.",
            hint=f"Separate sizes by commas alone: {sizes[0]} {','.join(sizes[1])}.",
        )


def parse_dtype(text: str) -> Dtype:
    """Return a dtype by its name or a usual abbreviation, in upper or lower case.

    Raises:
        BadParameter: There is no such dtype.
    """
    try:
        return Dtype(text.lower())
    except ValueError:
        known = ", ".join(f"'{dtype}'" for dtype in Dtype)
        raise typer.BadParameter(f"'{text}' is not one of {known}.") from None


def parse_attention(text: str) -> Attention:
    """Return an attention implementation by its name or a short one, in upper or lower case.

    Raises:
        BadParameter: The name is unknown.
    """
    try:
        return Attention(text.lower())
    except ValueError:
        known = ", ".join(f"'{attention}'" for attention in Attention)
        raise typer.BadParameter(f"'{text}' is not one of {known}.") from None


def parse_parameters(text: str | None, *, option: str) -> int | None:
    """Return the number of parameters in a text like `4B`, `700M` or `1.6T`; None for None.

    Raises:
        UsageError: The text is not a number with one of these units.
    """
    if text is None:
        return None
    size = _PARAMETERS.fullmatch(text.strip())
    if size is None:
        raise UsageError(
            f"{option}: '{text}' is not a number of parameters.",
            hint="Write billions as 4B, and millions as 700M.",
        )
    return int(Decimal(size["number"]) * _PARAMETERS_PER_UNIT[size["unit"].lower()])
