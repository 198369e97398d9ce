"""Options of the library: taken for what they mean, or refused with what there is to choose from."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, overload

from moetool.errors import UsageError

_Choice = TypeVar("_Choice", bound=StrEnum)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def choose(value: object, kind: type[_Choice], *, name: str) -> _Choice:
    """Return a member of an enum, given itself or its value.

    Args:
        value: What was given.
        kind: The enum.
        name: What it is for, as it reads in `The … can't be 3.`

    Raises:
        UsageError: It is neither.
    """
    return kind(choose_word(value, [choice.value for choice in kind], name=name))


def choose_word(value: object, words: Sequence[str], *, name: str) -> str:
    """Return one of several words.

    Args:
        value: What was given.
        words: The words, at least two.
        name: What they are for.

    Raises:
        UsageError: It is none of them.
    """
    if isinstance(value, str) and value in words:
        return str(value)
    *others, last = words
    raise UsageError(
        f"The {name} can't be {_show(value)}.", hint=f"Choose {', '.join(others)} or {last}."
    )


@overload
def take_count(
    value: object, *, name: str, smallest: int, largest: int, is_optional: bool
) -> int | None: ...


@overload
def take_count(value: object, *, name: str, smallest: int, largest: int) -> int: ...


def take_count(
    value: object, *, name: str, smallest: int, largest: int, is_optional: bool = False
) -> int | None:
    """Return a whole number, also of a type other than Python's own; never a truth value.

    Args:
        value: What was given.
        name: What it counts.
        smallest: The least that it may be.
        largest: The most that it may be.
        is_optional: Whether None may stand for no number.

    Raises:
        UsageError: It is no whole number, or out of range.
    """
    if value is None and is_optional:
        return None
    number = None
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            number = None
    if number is None or not smallest <= number <= largest:
        shown = f"{number:,}" if number is not None and abs(number) < 10**18 else _show(value)
        raise UsageError(
            f"The {name} can't be {shown}.",
            hint=f"Give a whole number from {smallest:,} to {largest:,}.",
        )
    return number


def take_flag(value: object, *, name: str) -> bool:
    """Return True or False; never what only counts as one of them.

    Args:
        value: What was given.
        name: What it says.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(value, bool):
        return value
    raise UsageError(f"{name} can't be {_show(value)}.", hint="Give True or False.")


def take_number(value: object, *, name: str, smallest: float, largest: float) -> float | None:
    """Return a finite number; None for None.

    Args:
        value: What was given.
        name: What it measures.
        smallest: The least that it may be.
        largest: The most that it may be.

    Raises:
        UsageError: It is no number, or out of range.
    """
    if value is None:
        return None
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    # In this order: what is not finite compares as false.
    if number is not None and smallest <= number <= largest:
        return float(number)
    raise UsageError(
        f"The {name} can't be {_show(value)}.",
        hint=f"Give a number from {smallest:g} to {largest:g}, or None.",
    )


def take_text(value: object, *, name: str) -> str:
    """Return a text.

    Args:
        value: What was given.
        name: What it names.

    Raises:
        UsageError: It is none.
    """
    if isinstance(value, str):
        return value
    raise UsageError(f"The {name} can't be {_show(value)}.", hint="Give it as a text.")


def take_path(value: object, *, name: str) -> Path:
    """Return a path, given as one or as a text.

    Args:
        value: What was given.
        name: What is there.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and "\0" not in path:
            return Path(path)
    raise UsageError(
        f"The {name} can't be {_show(value)}.", hint="Give its path, as a text or a Path."
    )


def take_numbers(value: object, *, name: str, largest: int) -> frozenset[int] | None:
    """Return the whole numbers of a collection, each once; None for None.

    Args:
        value: What was given.
        name: What each of them is.
        largest: The most that one may be.

    Raises:
        UsageError: It is no collection of such numbers, or an empty one.
    """
    if value is None:
        return None
    if not isinstance(value, Collection) or isinstance(value, str | bytes) or not len(value):
        raise UsageError(
            f"The {name}s can't be {_show(value)}.",
            hint="Give a list of whole numbers, or None for all.",
        )
    return frozenset(take_count(each, name=name, smallest=0, largest=largest) for each in value)


def take_sizes(value: object, *, name: str) -> tuple[int, ...]:
    """Return what a sequence lists, in its order and each once; scenarios check the numbers.

    Args:
        value: What was given.
        name: What they are.

    Raises:
        UsageError: It is no sequence of such numbers.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError(
            f"The {name} can't be {_show(value)}.", hint="Give a list of whole numbers."
        )
    try:
        return tuple(dict.fromkeys(value))
    except TypeError:
        raise UsageError(
            f"The {name} can't be {_show(value)}.", hint="Give a list of whole numbers."
        ) from None


def _show(value: object) -> str:
    """Return what was given, on one line of printable characters, however long it is."""
    return _repr.repr(str(value) if isinstance(value, StrEnum) else value)
