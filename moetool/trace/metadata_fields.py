"""Fields of a JSON object, checked by type and range before anything is computed from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from moetool.printable import printable

# Far more than thousands of layers need, and still read in a fraction of a second.
MOST_BYTES = 10_000_000
# JSON itself has no limit; no real count is larger.
_LARGEST_COUNT = 2**63 - 1
# Far more FLOPs than a token of any model takes.
_LARGEST_AMOUNT = 1e30
# The rows hold layers and experts as 16-bit integers.
LARGEST_ID = 2**15 - 1
MOST_IDS = LARGEST_ID + 1


class FieldError(ValueError):
    """A field holds an invalid value; the text names the field, the value and the valid ones."""


Reader = Callable[[Any], Any]


def load_object(text: str | bytes) -> Mapping[str, Any]:
    """Return the JSON object that a text holds.

    Raises:
        FieldError: The text is too long, nested too deeply, or not a JSON object.
    """
    if len(text) > MOST_BYTES:
        raise FieldError(f"it is longer than {MOST_BYTES:,} bytes")
    try:
        value = json.loads(text)
    except RecursionError:
        raise FieldError("it is nested too deeply") from None
    except ValueError as error:
        raise FieldError(f"it is not JSON: {printable(error)}") from None
    return as_object(value, name="it")


def read_fields(
    values: Mapping[str, Any], readers: Mapping[str, Reader], *, within: str = ""
) -> dict[str, Any]:
    """Return the values that have a reader, each as its reader returns it.

    Args:
        values: As in the JSON object.
        readers: By field name.
        within: Prefix for the field names in error messages.

    Raises:
        FieldError: A reader does not accept its value.
    """
    fields = {}
    for name, read in readers.items():
        if name in values:
            try:
                fields[name] = read(values[name])
            except FieldError as error:
                raise FieldError(f"{within}{name} is {error}") from None
    return fields


def as_list(value: Any, *, name: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise FieldError(f"{name} is {_show(value)}, not a list")
    return value


def as_object(value: Any, *, name: str) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise FieldError(f"{name} is {_show(value)}, not an object")
    return value


def as_text(value: Any) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise _wrong(value, "a text")
    return value


def as_flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise _wrong(value, "true or false")
    return value


def as_number(value: Any) -> float:
    """Return a finite number."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise _wrong(value, "a finite number")


def as_amount(value: Any) -> float:
    """Return an amount that need not be whole, such as a mean of counts."""
    try:
        amount = as_number(value)
    except FieldError:
        amount = -1
    if not 0 <= amount <= _LARGEST_AMOUNT:
        raise _wrong(value, f"a number from 0 to {_LARGEST_AMOUNT:g}")
    return amount


def as_count(least: int = 0, most: int = _LARGEST_COUNT) -> Callable[[Any], int]:
    """Return a reader of whole numbers from `least` to `most`."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(value, f"a whole number from {least:,} to {most:,}")
        return value

    return read


def as_texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(value, "a list of texts")
    return tuple(value)


def as_text_by_name(value: Any) -> dict[str, str]:
    """Return an object whose values are texts."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _wrong(value, "an object of texts")
    return value


def or_none(read: Reader) -> Reader:
    """Return a reader that also accepts null."""
    return lambda value: None if value is None else read(value)


def _wrong(value: Any, expected: str) -> FieldError:
    return FieldError(f"{_show(value)}, not {expected}")


def _show(value: Any) -> str:
    """Return a value in a form short enough for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    # Cut first: otherwise all of it would be turned into JSON.
    return printable(json.dumps(value[:100] if isinstance(value, str) else value), max_length=60)
