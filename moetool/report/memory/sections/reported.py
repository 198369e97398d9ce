"""The page of a system that is known from reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.text.lines import Paragraph, make_fact, make_notes, make_paragraphs
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable, style_words
from moetool.report.text.words import UNKNOWN
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from moetool.memory.answers.reported import ReportedWeights
    from moetool.memory.result import Estimate


def list_reported(estimate: Estimate, reported: ReportedWeights) -> Iterator[Block]:
    """Yield what is reported of a system, and what follows from it."""
    yield make_paragraphs([style_words(_word_verdict(estimate, reported), Style.STRONG)])
    yield make_notes(estimate.notes)
    yield list(_list_facts(reported))


def _word_verdict(estimate: Estimate, reported: ReportedWeights) -> str:
    name = make_printable(estimate.model)
    if reported.weights_bytes_least is None:
        return f"The memory that {name} needs is unknown."
    words = (
        f"The weights of {name} take at least {format_bytes(reported.weights_bytes_least)}, if the "
        "reports are right"
    )
    if reported.num_gpus_least is not None:
        words += f": {reported.num_gpus_least:,} × {estimate.gpu} or more for them alone"
    return f"{words}. All else is unknown."


def _list_facts(reported: ReportedWeights) -> Iterator[Paragraph]:
    for label in ("total", "active", "experts"):
        words = getattr(reported, label)
        yield make_fact(
            label, f"{UNKNOWN}, not reported" if words is None else f"{words}, reported"
        )
    yield make_fact("reported by", reported.source)
    yield make_fact("assumed", f"{reported.bits_per_parameter} bits for each parameter")
