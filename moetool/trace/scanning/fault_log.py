"""The faults of a trace, each kind with its first place and its number, without stopping at one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moetool.trace.scanning.rows_of_decisions import Rows

# Kinds of faults. Those of decisions are known once all rows of the decision are.
VALUES, WEIGHTS, DOMAINS = "values in range", "weights", "one domain"
EXPERTS, RANKS, FIRST_CHOICE = "distinct experts", "ranks", "first choice"


@dataclass(frozen=True)
class LoggedFault:
    """The first fault of a kind.

    Attributes:
        words: What is wrong, to follow the name of the file.
        file: The file, as messages name it.
        prompt_id: As in the trace's columns, like the following; None where it doesn't apply.
    """

    words: str
    file: str
    prompt_id: str | None = None
    stack: str | None = None
    layer: int | None = None
    position: int | None = None


@dataclass
class FaultLog:
    """Faults by kind.

    Attributes:
        first: The first of each kind.
        number: Rows, decisions or prompts with a fault of the kind.
    """

    first: dict[str, LoggedFault] = field(default_factory=dict)
    number: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, fault: LoggedFault, *, number: int) -> None:
        """Note faults of a kind, given the first of them."""
        self.first.setdefault(kind, fault)
        self.number[kind] = self.number.get(kind, 0) + number

    def forget_decisions(self) -> None:
        """Forget faults of decisions whose rows turn out to be scattered."""
        for kind in (EXPERTS, RANKS, FIRST_CHOICE):
            self.first.pop(kind, None)
            self.number.pop(kind, None)


@dataclass(frozen=True)
class FaultyDecisions:
    """Decisions with a fault of one kind.

    Attributes:
        row: Index of a row of the first of them.
        number: How many there are.
        words: The fault, worded to follow the name of the file.
    """

    row: int
    number: int
    words: str


def find_faulty(rows: Rows, starts: NDArray[np.intp]) -> dict[str, FaultyDecisions]:
    """Return the faults of decisions whose rows lie together, by kind.

    Args:
        rows: At least one.
        starts: Index of the first row of each decision.
    """
    sizes = np.diff(starts, append=len(rows))
    decision = np.repeat(np.arange(len(starts)), sizes)  # (num_rows,)
    found = {}
    order = np.lexsort((rows.expert, decision))
    expert = rows.expert[order]
    again = np.zeros(len(rows), dtype=bool)
    again[order[1:]] = (
        (expert[1:] == expert[:-1])
        & (expert[1:] >= 0)
        & (decision[order][1:] == decision[order][:-1])
    )
    if again.any():
        row = int(again.argmax())
        words = f"has expert {rows.expert[row]} twice for one decision"
        found[EXPERTS] = FaultyDecisions(row, _count(decision, again), words)
    if rows.rank is None:
        return found
    order = np.lexsort((rows.rank, decision))
    wrong = np.zeros(len(rows), dtype=bool)
    wrong[order] = rows.rank[order] != np.arange(len(rows)) - starts[decision]
    if wrong.any():
        row = int(wrong.argmax())
        ranks = ", ".join(map(str, rows.rank[decision == decision[row]][:_RANKS_SHOWN]))
        words = f"has a decision with the ranks {ranks}"
        found[RANKS] = FaultyDecisions(row, _count(decision, wrong), words)
    if rows.weight is not None:
        largest = np.maximum.reduceat(rows.weight, starts)
        less = (rows.rank == 0) & (rows.weight < largest[decision])
        if less.any():
            row = int(less.argmax())
            words = f"has a larger weight than that of rank 0, {rows.weight[row]:.4g}"
            found[FIRST_CHOICE] = FaultyDecisions(row, _count(decision, less), words)
    return found


_RANKS_SHOWN = 12


def _count(decision: NDArray[np.intp], is_wrong: NDArray[np.bool_]) -> int:
    return len(np.unique(decision[is_wrong]))
