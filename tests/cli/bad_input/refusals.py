"""Checks that every refused command must pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.command import Completed


@dataclass(frozen=True)
class Refusal:
    """The expected words of a refused command.

    Attributes:
        exit_code: As documented in `moetool --help`.
        error: Part of the error line, naming the culprit.
        hint: Part of the hint.
        fact: Part of one of the indented lines in between.
    """

    exit_code: int
    error: str
    hint: str = ""
    fact: str = ""

    def about(self, place: Path) -> Refusal:
        """Return the refusal with `{}` replaced by a place that only the test knows."""
        error, hint, fact = (
            text.replace("{}", str(place)) for text in (self.error, self.hint, self.fact)
        )
        return Refusal(self.exit_code, error=error, hint=hint, fact=fact)


@dataclass(frozen=True)
class Attempt:
    """A command that ran, and the output that was asked for."""

    completed: Completed
    target: Path


def assert_refused(
    completed: Completed, refusal: Refusal, *, target: Path | None, note: str = ""
) -> None:
    """Check that a command ended in one error, one hint, its exit code, and no output at all.

    Args:
        completed: The command.
        refusal: What it should have said.
        target: The output asked for; None if something lay there or nothing was asked for.
        note: The whole last line, if one should follow the hint.
    """
    stderr = completed.stderr
    assert "Traceback" not in stderr, stderr
    assert completed.returncode == refusal.exit_code, stderr
    assert completed.stdout == "", completed.stdout
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    facts = [line for line in lines if line.startswith("  ")]
    assert (len(errors), len(hints)) == (1, 1), stderr
    assert lines == errors + facts + hints + ([note] if note else []), stderr
    assert refusal.error in errors[0], stderr
    assert refusal.hint in hints[0], stderr
    assert refusal.fact in "\n".join(facts), stderr
    assert re.search(r"[^.?!][.?!]$", errors[0]), f"no sentence: {errors[0]}"
    if target is not None:
        assert not find_leftovers(target), find_leftovers(target)


def find_leftovers(target: Path) -> list[str]:
    """Return everything at the place of a trace: the trace, its parts, files named after it."""
    return sorted(path.name for path in target.parent.glob(f"*{target.stem}*"))


def find_steering(text: str) -> Sequence[str]:
    """Return the characters of an output that would steer a terminal."""
    return sorted({character for character in text if not character.isprintable()} - {"\n"})
