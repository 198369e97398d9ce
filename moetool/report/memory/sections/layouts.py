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

_HEADERS = ("on each GPU", "weights", "cache", "activations", "peak", "total")


def list_layout_verdicts(layouts: Sequence[Layout]) -> list[str]:
    """Return a sentence on each way of sharing, and one on that which needs the fewest GPUs."""
    sentences = [_word_verdict(layout) for layout in layouts]
    known = [layout for layout in layouts if layout.fewest_gpus is not None]
    if known:
        fewest = min(known, key=lambda layout: layout.fewest_gpus or 0)
        # One GPU shares with none.
        way = f", {fewest.way}" if fewest.fewest_gpus != 1 else ""
        gpus = f"{fewest.fewest_gpus:,} × {make_printable(fewest.gpu)}"
        sentences.append(f"Fewest GPUs: {gpus}{way}.")
    return sentences


def _word_verdict(layout: Layout) -> str:
    gpus = f"{layout.num_gpus:,} × {make_printable(layout.gpu)}, {layout.way}"
    worst = next((rank for rank in layout.ranks if rank.rank == layout.worst_rank), None)
    if worst is None:
        return f"{gpus}: unknown." if layout.fits is None else f"{gpus}: doesn't fit."
    headroom = format_bytes(abs(worst.headroom_bytes))
    if layout.fits:
        return f"{gpus}: fits, {headroom} left on GPU {worst.rank}, the fullest."
    return f"{gpus}: doesn't fit, GPU {worst.rank} is short by {headroom}."


def list_layouts(layouts: Sequence[Layout]) -> Block:
    """Return what each GPU holds, one row for GPUs that hold the same, under each way of sharing."""
    rows = [
        _make_row(f"{layout.way} {gpus}", rank)
        for layout in layouts
        for rank, gpus in _group(layout.ranks)
    ]
    block: Block = []
    if rows:
        block = [make_table(_HEADERS, rows, right=tuple(range(1, len(_HEADERS))))]
    return [*block, *make_paragraphs(_list_notes(layouts), Style.MUTED)]


def _list_notes(layouts: Sequence[Layout]) -> Iterator[str]:
    """Yield each note once, with the ways of sharing that it is about unless it is about all."""
    ways_of: dict[str, list[str]] = {}
    for layout in layouts:
        for note in layout.notes:
            ways_of.setdefault(note, []).append(layout.way)
    for note, ways in ways_of.items():
        yield note if len(ways) == len(layouts) else f"{', '.join(ways)}: {note}"


def _group(ranks: Sequence[RankMemory]) -> Iterator[tuple[RankMemory, str]]:
    for _, alike in groupby(ranks, key=lambda rank: (rank.batch_size, rank.figures)):
        first, *others = alike
        last = f" to {others[-1].rank}" if others else ""
        yield first, f"{first.rank}{last}"


def _make_row(name: str, rank: RankMemory) -> tuple[str, ...]:
    figures = rank.figures
    return (
        name,
        word_size(figures.weights_bytes),
        word_size(figures.cache_bytes),
        word_size(rank.activation_bytes),
        word_size(figures.peak_allocated_bytes),
        word_size(figures.total_device_bytes),
    )
