"""Gaps in an estimate: facts that could not be found out, with a note on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from moetool.errors import MoetoolError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Gaps:
    """Collects what could not be found out about a scenario.

    Attributes:
        notes: A sentence for each gap, with its reason.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def unless_refused(
        self, subject: str, find: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T | None:
        """Return what a function finds; if it refuses, add a note and return None.

        Args:
            subject: The subject and verb of the note, such as `The size is`.
            find: The function.
            args: The function's arguments.
            kwargs: The function's keyword arguments.
        """
        try:
            return find(*args, **kwargs)
        except MoetoolError as error:
            self.notes.append(f"{subject} unknown: {error.message}")
            return None

    def is_allowed(
        self, subject: str, check: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs
    ) -> bool:
        """Return whether a check passes, and add a note with the reason if it doesn't.

        Args:
            subject: The subject and verb of the note, such as `The size is`.
            check: The function, which raises an error if the check fails.
            args: The function's arguments.
            kwargs: The function's keyword arguments.
        """
        num_notes = len(self.notes)
        self.unless_refused(subject, check, *args, **kwargs)
        return len(self.notes) == num_notes
