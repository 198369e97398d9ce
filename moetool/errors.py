"""Define the errors that users can act on, each with a sentence, a hint and an exit code.

    MoetoolError
    ├── UsageError            2  contradictory options, an output that exists
    ├── InputError            3  a path, checkpoint or prompts file that can't be used
    ├── DenseModelError       4  a model without routed experts, where routing is asked for
    ├── UntraceableError      5  routing that can't be recorded exactly
    └── OutOfMemoryError      6  an allocation that failed, as far as Python sees it

Library code raises these; only `moetool.cli.errors` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MoetoolError(Exception):
    """Something the user can act on.

    Attributes:
        message: One sentence that names the thing and what was wrong with it, without advice.
        hint: One imperative sentence: what to do about it.
        facts: Further lines to show, each `label: what was seen`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str, facts: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = tuple(facts)


class UsageError(MoetoolError):
    """The arguments can't be carried out as given."""

    exit_code = 2


class InputError(MoetoolError):
    """An input is missing, unreadable or not what it should be."""

    exit_code = 3


class DenseModelError(MoetoolError):
    """The model has no routed experts, so there is nothing to trace."""

    exit_code = 4


class UntraceableError(MoetoolError):
    """The routing of this model, or of this run, can't be recorded exactly."""

    exit_code = 5


class OutOfMemoryError(MoetoolError):
    """An allocation failed."""

    exit_code = 6
