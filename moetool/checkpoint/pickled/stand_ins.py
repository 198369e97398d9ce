"""Stand-ins for what a pickle names and makes, and the errors that reading one ends in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class PickleError(Exception):
    """A pickle can't be read. The message is the end of a sentence."""


class ForbiddenNameError(PickleError):
    """A pickle names a function or a class that it may not name.

    Attributes:
        name: With its module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {name}")
        self.name = name


@dataclass(frozen=True)
class Named:
    """The stand-in for a function, class or constant that a pickle names.

    Attributes:
        name: With its module.
        make: Makes the stand-in of what a call returns; None for what is not called.
    """

    name: str
    make: Callable[..., object] | None = None


@dataclass(eq=False, slots=True)
class Instance:
    """The stand-in for an object of a class.

    Attributes:
        kind: The class, with its module.
        arguments: That it is made with.
        state: That it is given afterwards; None if it is given none.
    """

    kind: str
    arguments: tuple[object, ...] = ()
    state: object = None
