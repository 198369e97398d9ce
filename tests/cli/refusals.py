"""What every refused command owes its user."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.conftest import Completed

Name = TypeVar("Name", bound=Hashable)

# Some tables of cases import torch and transformers once a case, which keeps a core busy for
# seconds; more than a few at once would need more memory than time saved.
_MOST_AT_ONCE = 4


@dataclass(frozen=True)
class Refusal:
    """What a refused command should say.

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
    lines = completed.stderr.splitlines()
    assert completed.returncode == refusal.exit_code, completed.stderr
    assert "Traceback" not in completed.stderr
    assert completed.stdout == ""
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    facts = [line for line in lines if line.startswith("  ")]
    assert (len(errors), len(hints)) == (1, 1), completed.stderr
    assert lines == errors + facts + hints + ([note] if note else [])
    assert refusal.error in errors[0]
    assert refusal.hint in hints[0]
    assert refusal.fact in "\n".join(facts)
    assert re.search(r"[^.?!][.?!]$", errors[0]), f"not one sentence: {errors[0]}"
    if target is not None:
        assert find_leftovers(target) == []


def find_leftovers(target: Path) -> list[str]:
    """Return what lies where a trace was to go: itself, its parts, anything named after it."""
    return sorted(path.name for path in target.parent.glob(f"*{target.stem}*"))


def run_side_by_side(
    names: Iterable[Name], run: Callable[[Name], Completed]
) -> Mapping[Name, Completed]:
    """Return what `run` returns for every name, some of them at a time."""
    names = list(names)
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))
