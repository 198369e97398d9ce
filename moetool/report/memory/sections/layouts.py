"""Show the run on each of several GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable
from moetool.report.text.tables import make_table
from moetool.report.text.words import word_size
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from moetool.memory.answers.layout import Layout, RankMemory

_HEADERS = (
    *("GPUs", "sequences", "weights", "cache", "activations", "collectives"),
    *("allocated", "reserved", "total"),
)


def list_layout_verdicts(layouts: Sequence[Layout]) -> list[str]:
    """Return a sentence on each way of sharing, and one on that which needs the fewest GPUs."""
    sentences = [_word_verdict(layout) for layout in layouts]
    known = [layout for layout in layouts if layout.fewest_gpus is not None]
    if known:
        fewest = min(known, key=lambda layout: layout.fewest_gpus or 0)
        sentences.append(
            f"Fewest GPUs: {fewest.fewest_gpus:,} × {make_printable(fewest.gpu)}, {fewest.way}."
        )
    return sentences


def _word_verdict(layout: Layout) -> str:
    gpus = f"{layout.num_gpus:,} × {make_printable(layout.gpu)}, {layout.way}"
    worst = next((rank for rank in layout.ranks if rank.rank == layout.worst_rank), None)
    if worst is None:
        return f"{gpus}: unknown."
    headroom = format_bytes(abs(worst.headroom_bytes))
    if layout.fits:
        return f"{gpus}: fits, {headroom} left on GPU {worst.rank}, the fullest."
    return f"{gpus}: doesn't fit, GPU {worst.rank} is short by {headroom}."


def list_layouts(layouts: Sequence[Layout]) -> Block:
    """Return what each GPU holds, one row for GPUs that hold the same, under each way of sharing."""
    block: Block = []
    for layout in layouts:
        rows = [_make_row(rank, name) for rank, name in _group(layout.ranks)]
        if rows:
            headers = (f"{layout.way}:", *_HEADERS[1:])
            block = [*block, make_table(headers, rows, right=tuple(range(1, len(_HEADERS))))]
        if layout.notes:
            block = [*block, *make_paragraphs(layout.notes, Style.MUTED)]
    return block


def _group(ranks: Sequence[RankMemory]) -> Iterator[tuple[RankMemory, str]]:
    for _, alike in groupby(ranks, key=lambda rank: (rank.batch_size, rank.figures)):
        first, *others = alike
        last = f" to {others[-1].rank}" if others else ""
        yield first, f"GPU {first.rank}{last}"


def _make_row(rank: RankMemory, name: str) -> tuple[str, ...]:
    figures = rank.figures
    return (
        name,
        f"{rank.batch_size:,}",
        word_size(figures.weights_bytes),
        word_size(figures.cache_bytes),
        word_size(rank.activation_bytes),
        word_size(rank.communication_bytes),
        word_size(figures.peak_allocated_bytes),
        word_size(figures.peak_reserved_bytes),
        word_size(figures.total_device_bytes),
    )
