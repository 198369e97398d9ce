"""What can go wrong through no fault of moetool: a sentence, a hint, and an exit code each.

    MoetoolError
    ├── UsageError            2  flags that make no sense together, an output that exists
    ├── InputError            3  a path, checkpoint or prompts file that can't be used
    ├── DenseModelError       4  a model without routed experts, where routing is asked for
    ├── UntraceableError      5  routing that can't be recorded exactly
    └── OutOfMemoryError      6  memory ran out as far as Python sees it

Library code raises these; only `moetool.cli.errors` turns them into lines on a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MoetoolError(Exception):
    """Something the user can act on.

    Attributes:
        message: What was wrong with which thing: one sentence, no trailing advice.
        hint: What to do about it: one sentence.
        facts: Further lines worth showing, each `label: what was seen`.
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
