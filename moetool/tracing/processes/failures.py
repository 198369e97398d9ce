"""The first failure of a run of several processes, which all of them end with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """The failure that ends a run.

    Attributes:
        rank: Process that failed first.
        exit_code: That all processes end with.
        message: One sentence.
        hint: What to do about it.
    """

    rank: int
    exit_code: int
    message: str
    hint: str
