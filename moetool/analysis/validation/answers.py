"""Questions to a trace, and the columns that each of them needs."""

from __future__ import annotations

from collections.abc import Collection

from moetool.analysis.validation.result import Answer
from moetool.printable import printable

# Question, command, and the columns of which it needs each.
_QUESTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("how evenly experts are loaded", "balance", ()),
    ("the same for prefill and decode", "balance --by phase", ("phase",)),
    ("which experts are chosen together", "coactivation", ()),
    ("whether experts specialize by domain", "specialize", ("domain",)),
    ("whether experts specialize by token", "specialize --by token", ("token_id",)),
    ("which tokens an expert gets", "tokens", ("token_id",)),
    ("where to place experts on GPUs", "place", ()),
    ("which experts to keep in GPU memory", "cache", ()),
    ("which experts to train, by choices", "select --by token", ()),
    ("which experts to train, by weights", "select --by gate", ("weight",)),
    ("how other models route these tokens", "compare", ()),
    ("all of it on one page for a browser", "report", ()),
)


def find_answers(
    columns: Collection[str], *, domains: Collection[str], phases: Collection[str]
) -> tuple[Answer, ...]:
    """Return which questions a trace can answer.

    Args:
        columns: Columns of the trace.
        domains: Its domains, without a placeholder for prompts that have none.
        phases: Those of its tokens.
    """
    answers = []
    for question, command, needed in _QUESTIONS:
        absent = [name for name in needed if name not in columns]
        missing = f"no column {absent[0]!r}" if absent else None
        if missing is None and "domain" in needed and len(domains) < 2:
            missing = "only one domain" if domains else "no prompt has a domain"
        if missing is None and "phase" in needed and len(phases) == 1:
            missing = f"all tokens are {printable(next(iter(phases)), max_length=40)}"
        answers.append(Answer(question, command, missing))
    return tuple(answers)
