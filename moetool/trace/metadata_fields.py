"""Values of a JSON object, checked by kind and range before anything is computed from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from moetool.printable import printable

# Far more than thousands of layers need, and read in a fraction of a second.
MOST_BYTES = 10_000_000
# JSON has no limit of its own; counts beyond this are nobody's.
_LARGEST_COUNT = 2**63 - 1
# Layers and experts are 16-bit integers in the rows.
LARGEST_ID = 2**15 - 1


class FieldError(ValueError):
    """A field holds what it can't hold; its text says which, what it holds and what it may."""


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
    """Return those of the values that have a reader, each as its reader returns it.

    Args:
        values: As JSON has them.
        readers: By the field's name.
        within: What the fields belong to, before their names in errors.

    Raises:
        FieldError: A value is not what its reader takes.
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


def as_count(least: int = 0, most: int = _LARGEST_COUNT) -> Callable[[Any], int]:
    """Return what reads a whole number from `least` to `most`."""

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
    """Return what reads null as well."""
    return lambda value: None if value is None else read(value)


def _wrong(value: Any, expected: str) -> FieldError:
    return FieldError(f"{_show(value)}, not {expected}")


def _show(value: Any) -> str:
    """Return a value as a message may hold it, whatever its size."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    # Cut first: JSON would be made of all of it.
    return printable(json.dumps(value[:100] if isinstance(value, str) else value), max_length=60)
