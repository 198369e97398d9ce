"""Show one estimate: the verdict, where the memory goes, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.table import Table

from moetool.report.memory.sections.assistant import list_assistant
from moetool.report.memory.sections.fits import list_fits
from moetool.report.memory.sections.hardware import (
    list_offload,
    list_ranks,
    list_speed,
)
from moetool.report.memory.sections.implementations import list_implementations
from moetool.report.memory.sections.layouts import list_layout_verdicts, list_layouts
from moetool.report.memory.sections.reported import list_reported
from moetool.report.memory.sections.serving import list_serving
from moetool.report.memory.sections.training import list_training
from moetool.report.memory.verdict import list_verdict
from moetool.report.memory.words import (
    list_limits,
    word_change,
    word_method,
    word_options,
    word_peak,
    word_run,
    word_seconds,
    word_stored,
    word_unquantized,
    word_variant,
    word_weights,
)
from moetool.report.text.lines import (
    Paragraph,
    make_fact,
    make_facts,
    make_notes,
    make_paragraphs,
)
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable, style_words
from moetool.report.text.tables import Bar, make_table
from moetool.report.text.words import UNKNOWN, word_share, word_size

if TYPE_CHECKING:
    from moetool.memory.result import Estimate

_FIGURES = {
    "weights_bytes": "weights",
    "cache_bytes": "cache",
    "peak_allocated_bytes": "peak allocated",
    "peak_reserved_bytes": "peak reserved",
    "context_bytes": "CUDA context",
    "total_device_bytes": "device total",
}


def list_blocks(estimate: Estimate) -> Iterator[Block]:
    """Yield everything known about one estimate."""
    if estimate.reported:
        yield from list_reported(estimate, estimate.reported)
        return
    verdict, *ways = list_verdict(estimate)
    layouts = list_layout_verdicts(estimate.layouts)
    in_short = make_paragraphs([style_words(verdict, Style.STRONG), *ways, *layouts])
    yield in_short
    yield make_notes(estimate.notes)
    yield list(_list_facts(estimate))
    yield [_make_breakdown(estimate)]
    if estimate.training:
        yield list(list_training(estimate.training))
    if estimate.assistant:
        yield list(list_assistant(estimate.assistant))
    yield list(_list_peaks(estimate))
    yield [*_list_variants(estimate), *list_implementations(estimate)]
    yield list_fits(estimate)
    yield list(_list_limits(estimate))
    yield list_ranks(estimate.ranks)
    yield list_layouts(estimate.layouts)
    if estimate.offload:
        yield list_offload(estimate.offload, estimate.gpu)
    if estimate.speed:
        yield list_speed(estimate.speed, estimate.gpu)
    if estimate.serving:
        yield list_serving(estimate.serving)
    yield list(_list_measured(estimate))
    # The page is longer than many a terminal.
    yield in_short


def _list_facts(estimate: Estimate) -> Iterator[Paragraph]:
    yield make_fact("run", word_run(estimate.scenario))
    yield make_fact("weights", word_weights(estimate))
    options = word_options(estimate.scenario)
    if options:
        yield make_fact("options", options)
    if estimate.stored is not None:
        yield make_fact("checkpoint", word_stored(estimate.stored))
    yield make_fact("method", word_method(estimate.method.value))
    yield make_fact("confirmed", f"on {estimate.confirmed_on or 'no GPU yet'}")


def _make_breakdown(estimate: Estimate) -> Table:
    """Return a table whose parts add up to the subtotals below them, and these to the total."""
    figures, peak = estimate.figures, estimate.at_peak
    parts = (
        ("weights", peak.parts.weights_bytes if peak else figures.weights_bytes, None),
        ("cache", peak.parts.cache_bytes if peak else figures.cache_bytes, None),
        ("activations", peak.parts.activation_bytes if peak else None, None),
        *(
            (
                ("gradients", peak.parts.gradient_bytes, None),
                ("optimizer", peak.parts.optimizer_state_bytes, None),
            )
            if peak and estimate.training
            else ()
        ),
        ("workspace", peak.parts.workspace_bytes if peak else None, None),
        ("= peak allocated", figures.peak_allocated_bytes, "torch.cuda.max_memory_allocated"),
        ("allocator slack", figures.slack_bytes, None),
        ("= peak reserved", figures.peak_reserved_bytes, "torch.cuda.max_memory_reserved"),
        ("CUDA context", estimate.context_bytes, None),
        ("= device total", figures.total_device_bytes, "nvidia-smi"),
    )
    total = figures.total_device_bytes
    rows = []
    for label, num_bytes, shown_by in parts:
        share = num_bytes / total if total and num_bytes is not None else None
        rows.append(
            (
                label,
                word_size(num_bytes),
                "" if share is None else word_share(share),
                shown_by or ("" if share is None else Bar(share)),
            )
        )
    when = f"peak of {peak.phase}" if peak else "at the peak"
    return make_table((when, "bytes", "share", "of the device total"), rows, right=(1, 2))


def _list_peaks(estimate: Estimate) -> Iterator[Paragraph]:
    """Yield what caused the peak of each phase, the highest first, and the final cache size."""
    for peak in sorted(estimate.peaks, key=lambda peak: -peak.above_weights_bytes):
        yield make_fact(peak.phase.value, word_peak(peak))
    highest, cache_bytes = estimate.at_peak, estimate.figures.cache_bytes
    if cache_bytes and (highest is None or highest.cache_bytes != cache_bytes):
        words = f"{word_size(cache_bytes)} after the last token that runs"
        at_peak = "" if highest is None else f"; {word_size(highest.cache_bytes)} at the peak above"
        yield make_fact("cache", f"{words}{at_peak}")


def _list_variants(estimate: Estimate) -> Block:
    if not estimate.variants:
        return []
    rows = [
        (
            word_variant(name),
            word_size(figures.weights_bytes),
            word_size(figures.peak_allocated_bytes),
            word_size(figures.total_device_bytes),
        )
        for name, figures in estimate.variants.items()
    ]
    headers = (
        make_printable(word_unquantized(estimate)),
        "weights",
        "peak allocated",
        "device total",
    )
    if estimate.scenario.quantization.value != "none":
        headers = (estimate.scenario.quantization.value, *headers[1:])
    return [make_table(headers, rows, right=(1, 2, 3))]


def _list_limits(estimate: Estimate) -> Iterator[Paragraph]:
    if estimate.limits is not None:
        yield from make_facts("limits", list_limits(estimate.limits, estimate.gpu))


def _list_measured(estimate: Estimate) -> Iterator[Table | Paragraph]:
    measured = estimate.measured
    if measured is None:
        return
    excess = estimate.excess_over_measured_bytes
    found = {each.name: getattr(measured.figures, each.name) for each in fields(measured.figures)}
    found["context_bytes"] = measured.context_bytes
    rows = []
    for name, label in _FIGURES.items():
        owner = estimate if name == "context_bytes" else estimate.figures
        rows.append(
            (
                label,
                word_size(getattr(owner, name)),
                word_size(found[name]),
                word_change(excess[name]) if name in excess else UNKNOWN,
                f"{excess[name] / found[name]:+.2%}" if name in excess and found[name] else "",
            )
        )
    headers = ("", estimate.method.value, "measured", "difference", "")
    yield make_table(headers, rows, right=(1, 2, 3, 4))
    yield make_fact("measured", f"on {measured.gpu}, in {measured.seconds:,.1f} s")
    if measured.times is not None:
        times = f"prefill {word_seconds(measured.prefill_s)}"
        if measured.decode_s_per_token is not None:
            times += f", decoding step {word_seconds(measured.decode_s_per_token)}"
        yield make_fact("times", f"{times}, with the kernels loaded")
