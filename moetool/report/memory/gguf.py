"""Render what llama.cpp allocates for GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import Paragraph, make_fact, make_notes, make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, style_words
from moetool.report.text.tables import make_table
from moetool.report.text.words import UNKNOWN
from moetool.wording import format_bytes, number_of

if TYPE_CHECKING:
    from moetool.memory.serving.gguf.result import GgufEstimate

_PARTS = {
    "weights": "weights",
    "repacked": "weights, repacked",
    "cache": "KV cache",
    "compute": "compute buffer",
    "output": "output buffer",
}


def render_table_text(estimates: Sequence[GgufEstimate], view: View = DEFAULT_VIEW) -> str:
    """Return each estimate in full."""
    return render_page([block for estimate in estimates for block in _list_blocks(estimate)], view)


def render_json(estimates: Sequence[GgufEstimate], view: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, sizes in bytes and unknown values as null."""
    return envelope.render_json(
        "moetool.memory-estimate-gguf/1",
        {"estimates": [each.to_dict() for each in estimates], **view.list_failures()},
    )


def render_csv(estimates: Sequence[GgufEstimate], _: View = DEFAULT_VIEW) -> str:
    """Return one row for every estimate, without its notes."""
    return envelope.render_rows(estimates)


RENDERERS: Renderers[Sequence[GgufEstimate]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _list_blocks(estimate: GgufEstimate) -> Iterator[Block]:
    yield make_paragraphs([style_words(_word_verdict(estimate), Style.STRONG)])
    yield list(_list_facts(estimate))
    yield _make_breakdown(estimate)
    yield make_notes(estimate.notes)


def _word_verdict(estimate: GgufEstimate) -> str:
    if estimate.gpu is None:
        return f"llama.cpp holds {_word(estimate.host_bytes)} on the CPU, mapped weights included."
    if estimate.fits is None:
        return f"Whether it fits on {_name_gpus(estimate)} is unknown."
    most = " on the fullest" if estimate.num_gpus > 1 else ""
    if estimate.fits:
        return f"Fits on {_name_gpus(estimate)}: {_word(estimate.gpu_bytes)}{most}."
    return f"Does not fit on {_name_gpus(estimate)}: short by {_word(estimate.short_bytes)}{most}."


def _name_gpus(estimate: GgufEstimate) -> str:
    return f"{estimate.num_gpus} × {estimate.gpu}" if estimate.num_gpus > 1 else str(estimate.gpu)


def _list_facts(estimate: GgufEstimate) -> Iterator[Paragraph]:
    yield make_fact("model", f"{estimate.model} (GGUF architecture {estimate.architecture})")
    sequences = number_of(estimate.num_sequences, "sequence")
    yield make_fact("run", f"{estimate.context:,} tokens of context, {sequences}")
    yield make_fact("flags", estimate.flags)
    fitting = estimate.fitting
    if fitting is not None and fitting.flags != estimate.flags:
        place = "the fullest GPU" if estimate.num_gpus > 1 else "the GPU"
        held = f"{format_bytes(fitting.gpu_bytes)} on {place}"
        yield make_fact("fits with", f"{fitting.flags}: {held}")
    if estimate.gpu is not None and estimate.fits is False and fitting is None:
        yield make_fact("fits with", "no division of layers: use a smaller context or type")
    reads = [
        f"{format_bytes(size)} by the {place}"
        for size, place in (
            (estimate.gpu_read_bytes, _word_gpus(estimate)),
            (estimate.host_read_bytes, "host"),
        )
        if size is not None
    ]
    yield make_fact("reads", f"{', '.join(reads)} per token" if reads else UNKNOWN)


def _make_breakdown(estimate: GgufEstimate) -> Block:
    buffers = [*estimate.on_gpus, estimate.on_host]
    rows = [
        (words, *(_word(getattr(each, name)) for each in buffers))
        for name, words in _PARTS.items()
        if any(getattr(each, name) != 0 for each in buffers)
    ]
    rows.append(("all", *(_word(each.total) for each in buffers)))
    several = estimate.num_gpus > 1
    names = [f"GPU {number}" if several else "GPU" for number in range(estimate.num_gpus)]
    right = tuple(range(1, len(buffers) + 1))
    return [make_table(("buffer", *names, "host"), rows, right=right)]


def _word_gpus(estimate: GgufEstimate) -> str:
    return "GPUs" if estimate.num_gpus > 1 else "GPU"


def _word(size: int | None) -> str:
    return UNKNOWN if size is None else format_bytes(size)
