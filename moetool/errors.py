"""Errors that are not a fault of moetool, each with a sentence, a hint and an exit code.

    MoetoolError
    ├── UsageError            2  options that contradict each other, an output that exists
    ├── InputError            3  a path, checkpoint or prompts file that cannot be used
    ├── DenseModelError       4  a model without routed experts, where routing is asked for
    ├── UntraceableError      5  routing that cannot be recorded exactly
    ├── OutOfMemoryError      6  out of memory, as far as Python can see
    └── LostProcessError    130  another process of the run that has died or failed

Library code raises them; only `moetool.cli.errors` turns them into lines on a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar


class MoetoolError(Exception):
    """Something the user can act on.

    Attributes:
        message: One sentence that names the thing and what was wrong with it, without advice.
        hint: One sentence in the imperative: what to do about it.
        facts: Further lines worth showing, such as `seen: 3 columns`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str, facts: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = tuple(facts)

    def __reduce__(self) -> tuple[Callable[..., MoetoolError], tuple[str]]:
        """Return how to make it anew: errors go from one process to another."""
        return partial(type(self), hint=self.hint, facts=self.facts), (self.message,)

    def __str__(self) -> str:
        """Return what a traceback shows to users of the library: the message, and the hint."""
        return f"{self.message}\nhint: {self.hint}"


class ResumableInterrupt(KeyboardInterrupt):
    """An interrupt of work whose results so far are kept.

    Attributes:
        hint: One sentence in the imperative: how to go on.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(MoetoolError):
    """The arguments cannot be carried out as given."""

    exit_code = 2


class InputError(MoetoolError):
    """An input is missing, unreadable or not what it should be."""

    exit_code = 3


class DenseModelError(MoetoolError):
    """The model has no routed experts, so there is nothing to trace."""

    exit_code = 4


class UntraceableError(MoetoolError):
    """The routing of this model, or of this run, cannot be recorded exactly."""

    exit_code = 5


class OutOfMemoryError(MoetoolError):
    """An allocation failed."""

    exit_code = 6


class LostProcessError(MoetoolError):
    """Another process of the run has died or failed, so this one cannot go on."""

    exit_code = 130
