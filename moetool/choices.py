"""Check the options of library functions: convert them, or refuse them with the alternatives."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, overload

from moetool.errors import UsageError
from moetool.wording import join_words

_Choice = TypeVar("_Choice", bound=StrEnum)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def choose(value: object, kind: type[_Choice], *, name: str) -> _Choice:
    """Return a member of an enum, given the member or its value.

    Args:
        value: The option as given.
        kind: The enum to choose from.
        name: What the option is called in messages, as in `The … can't be 3.`

    Raises:
        UsageError: The value is not in the enum.
    """
    if isinstance(value, str):
        # An enum may know other spellings of its values.
        with suppress(ValueError):
            return kind(value)
    return kind(choose_word(value, [choice.value for choice in kind], name=name))


def choose_word(value: object, words: Sequence[str], *, name: str) -> str:
    """Return one of at least two words.

    Raises:
        UsageError: The value is not one of the words.
    """
    if isinstance(value, str) and value in words:
        return str(value)
    raise _refuse(value, name, hint=f"Choose {join_words(words, last='or')}.")


def without_effect(options: Mapping[str, str], *, because: str, unless: str) -> UsageError:
    """Return the error for options that change nothing next to the others.

    Args:
        options: What a sentence calls each of them, by its flag on the command line.
        because: Why, as the end of a sentence.
        unless: What would give them an effect, in the imperative.
    """
    names = join_words(list(options.values()), last="and")
    verb = "have" if len(options) > 1 else "has"
    return UsageError(
        f"{names[0].upper()}{names[1:]} {verb} no effect: {because}.",
        hint=f"Leave out {join_words(list(options), last='and')}, or {unless}.",
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
    """Return a whole number as an int. Integers of other libraries count; booleans do not.

    Args:
        value: The option as given.
        name: What the option is called in messages.
        smallest: Lower limit, itself allowed.
        largest: Upper limit, itself allowed.
        is_optional: Whether None is allowed, and returned.

    Raises:
        UsageError: The value is not a whole number, or is out of range.
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
    """Return True or False. Values that are merely truthy or falsy are refused.

    Raises:
        UsageError: The value is neither True nor False.
    """
    if isinstance(value, bool):
        return value
    raise UsageError(f"{name} can't be {_show(value)}.", hint="Give True or False.")


def take_number(value: object, *, name: str, smallest: float, largest: float) -> float | None:
    """Return a finite number within limits; None for None.

    Raises:
        UsageError: The value is not a number, or is out of range.
    """
    if value is None:
        return None
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    # Written so that NaN, which compares as False, is refused.
    if number is not None and smallest <= number <= largest:
        return float(number)
    raise _refuse(value, name, hint=f"Give a number from {smallest:g} to {largest:g}, or None.")


def take_text(value: object, *, name: str) -> str:
    """Return a string.

    Raises:
        UsageError: The value is not a string.
    """
    if isinstance(value, str):
        return value
    raise _refuse(value, name, hint="Give it as a string.")


def take_path(value: object, *, name: str) -> Path:
    """Return a path, given as a Path or a string.

    Raises:
        UsageError: The value is neither, or contains a null character.
    """
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if isinstance(path, str) and "\0" not in path:
            return Path(path)
    raise _refuse(value, name, hint="Give its path as a string or a Path.")


def take_numbers(value: object, *, name: str, largest: int) -> frozenset[int] | None:
    """Return the whole numbers in a collection, each once; None for None.

    Args:
        value: The option as given.
        name: What one of the numbers is called in messages.
        largest: Upper limit of each number, itself allowed.

    Raises:
        UsageError: The value is not a collection of such numbers, or is empty.
    """
    if value is None:
        return None
    if not isinstance(value, Collection) or isinstance(value, str | bytes) or not len(value):
        raise _refuse(value, f"{name}s", hint="Give a list of whole numbers, or None for all.")
    return frozenset(take_count(each, name=name, smallest=0, largest=largest) for each in value)


def take_sizes(value: object, *, name: str) -> tuple[int, ...]:
    """Return the items of a sequence in its order, each once. Scenarios check the numbers.

    Raises:
        UsageError: The value is not a sequence, or has items that can't be numbers.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        try:
            return tuple(dict.fromkeys(value))
        except TypeError:
            pass
    raise _refuse(value, name, hint="Give a list of whole numbers.")


def _refuse(value: object, name: str, *, hint: str) -> UsageError:
    return UsageError(f"The {name} can't be {_show(value)}.", hint=hint)


def _show(value: object) -> str:
    """Return a value on one line of printable characters, shortened if it is long."""
    return _repr.repr(str(value) if isinstance(value, StrEnum) else value)
