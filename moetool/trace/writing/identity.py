"""The facts of a run that must agree for another run to go on where it ended."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from moetool.errors import UsageError
from moetool.printable import printable

# The name of the value that counts the windows of the run.
NUM_WINDOWS = "number of windows"
_LONGEST_VALUE = 80


@dataclass(frozen=True)
class RunIdentity:
    """Named values on which the rows of a run depend; two runs with the same write the same rows.

    Attributes:
        values: Plain JSON, by the name that users read; the most telling first.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def unique(cls) -> Self:
        """Return the identity of a run that no other may continue."""
        return cls({"run": secrets.token_hex(8)})

    def to_json(self) -> str:
        """Return the values as one JSON object."""
        return json.dumps(self.values, ensure_ascii=False)

    @property
    def token(self) -> bytes:
        """A short hash of the values."""
        return (
            hashlib.sha256(self.to_json().encode(errors="surrogatepass")).hexdigest()[:16].encode()
        )

    @property
    def num_windows(self) -> int | None:
        """Windows of the run; None if unknown."""
        return self.values.get(NUM_WINDOWS)

    def check_same(self, earlier: RunIdentity, *, folder: Path) -> None:
        """Check that this run may continue an earlier one.

        Args:
            earlier: The identity of the run that left the folder.
            folder: Holds its parts.

        Raises:
            UsageError: A value differs.
        """
        # As they are stored: a tuple comes back as a list.
        ours, theirs = json.loads(self.to_json()), json.loads(earlier.to_json())
        for name in dict.fromkeys((*ours, *theirs)):
            if ours.get(name) != theirs.get(name):
                raise UsageError(
                    f"This run and the one that left '{printable(folder)}' differ in {name}: "
                    f"{_show(ours.get(name))} here, {_show(theirs.get(name))} there.",
                    hint="Give the model, prompts and options of that run, or --force instead of "
                    "--resume to start over.",
                )


@dataclass(frozen=True)
class Invitation:
    """A pass for other processes that write parts of a trace, see `TraceShare`.

    Attributes:
        holder: What the lock of the folder says.
        identity: Of the run.
        may_replace: Whether the run may replace a trace at the target.
    """

    holder: bytes
    identity: RunIdentity
    may_replace: bool


def _show(value: Any) -> str:
    if value is None:
        return "none"
    words = value if isinstance(value, str) else json.dumps(value)
    return printable(words, max_length=_LONGEST_VALUE)
