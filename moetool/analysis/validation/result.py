"""The result of checking a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.trace.model_counts import ModelCounts
from moetool.wording import number_of

CheckResult = Literal["passed", "failed", "noted", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check of a trace.

    Attributes:
        check: Its name.
        meaning: What holds if it passes, as a sentence.
        result: `noted` for what a trace may have but its reader should know; `skipped` if the
            trace lacks what the check needs.
        num_faults: Rows, decisions, layers or prompts that fail it, as `message` says; None if
            skipped.
        message: The first fault, a note, or why the check was skipped; None if it passed.
        file: The file with the first fault.
        prompt_id: Of the first fault, like the following; None where it doesn't apply.
    """

    check: str
    meaning: str
    result: CheckResult
    num_faults: int | None = 0
    message: str | None = None
    file: str | None = None
    prompt_id: str | None = None
    stack: str | None = None
    layer: int | None = None
    position: int | None = None


@dataclass(frozen=True)
class ValidatedLayer(LayerFacts):
    """A routed layer of the trace.

    Attributes:
        num_assignments: Rows that ran an expert.
        num_experts_seen: Experts that were chosen at least once.
    """

    num_assignments: int
    num_experts_seen: int


@dataclass(frozen=True)
class Answer:
    """A question to the trace.

    Attributes:
        question: What is asked.
        command: The command that answers it.
        missing: Why the trace can't answer it, such as a missing column; None if it can.
    """

    question: str
    command: str
    missing: str | None


@dataclass(frozen=True)
class Validation(Tabular):
    """The checks of a trace, and what it is.

    Attributes:
        model_counts: Parameters of the model and FLOPs of a token, as the metadata states them.
        is_valid: Whether no check failed.
        columns: Those of the format that every file has.
        num_files: Files that hold rows.
        num_rows: Rows of all files.
        num_decisions: Tokens times the layers that decided for them.
        has_metadata: Whether each file says how it was made.
        has_rank_order: Whether the experts of a decision are in the order of their weights.
        domains: In order of first occurrence.
        checks: In a fixed order.
        layers: In the order of stack and layer.
        answers: Questions that can and can't be answered.
        notes: What had to be inferred, and what a reader should know, as sentences.
    """

    trace: TraceFacts
    model_counts: ModelCounts
    is_valid: bool
    columns: tuple[str, ...]
    num_files: int
    num_rows: int
    num_decisions: int
    has_metadata: bool
    has_rank_order: bool
    domains: tuple[str, ...]
    checks: tuple[Check, ...]
    layers: tuple[ValidatedLayer, ...]
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        failed = sum(check.result == "failed" for check in self.checks)
        state = f"{number_of(failed, 'failed check')}" if failed else "valid"
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        return f"<Validation{name}: {state}, {number_of(self.num_rows, 'row')}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        names = (
            *("trace", "model_counts", "is_valid", "columns", "num_files", "num_rows"),
            *("num_decisions", "has_metadata", "has_rank_order", "domains", "layers", "checks"),
            *("answers", "notes"),
        )
        values = {name: make_plain(getattr(self, name)) for name in names}
        return {**values, "model_counts": self.model_counts.to_dict()}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {**get_type_hints(Check), "result": str}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per check. Values are plain; unknown ones are None."""
        return [make_plain(check) for check in self.checks]
