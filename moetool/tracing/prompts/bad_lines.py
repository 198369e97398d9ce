"""Rows without a usable prompt, as one error."""

from __future__ import annotations

from moetool.errors import InputError
from moetool.tracing.prompts.files import BadLine

# Lines that an error names before it counts the rest.
_LINES_SHOWN = 4


class BadLines:
    """The first few bad lines of all files, and the number of all."""

    def __init__(self) -> None:
        self.shown: list[BadLine] = []
        self._number = 0

    def append(self, line: BadLine) -> None:
        """Count one more bad line."""
        self._number += 1
        if len(self.shown) < _LINES_SHOWN:
            self.shown.append(line)

    def as_error(self) -> InputError:
        """Return one error: the first line in full, the next by file and line, the rest counted."""
        first, *others = self.shown
        facts = []
        if others:
            more = self._number - len(self.shown)
            origins = ", ".join(line.origin for line in others)
            facts.append(f"also: {origins}" + (f" and {more:,} more" if more else ""))
        return InputError(f"{first.origin}: {first.complaint}.", hint=first.hint, facts=facts)
