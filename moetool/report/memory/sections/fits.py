"""Show which GPUs a model fits on, those with as much memory in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from moetool.report.memory.words import word_fit, word_unquantized
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, Words, make_printable, style_words
from moetool.report.text.tables import make_table
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from moetool.memory.answers.on_gpus import Fit
    from moetool.memory.result import Estimate

_NONE, _DEQUANTIZED = "none", "dequantized"
_GIB = 2**30

# The answers for one GPU, by the storage of the weights.
_Answers = Mapping[str, "Fit"]


def list_fits(estimate: Estimate) -> Block:
    """Return a row for each size of memory, and a column for each way of storing weights.

    For a checkpoint that is already quantized, columns without any known cell are left out: no
    library quantizes it again.
    """
    if not estimate.fits:
        return []
    known = {fit.quantization.value for fit in estimate.fits if fit.fits is not None}
    storages = [
        name
        for name in dict.fromkeys(fit.quantization.value for fit in estimate.fits)
        if estimate.stored is None or name in known or name == _NONE
    ]
    if estimate.fits_dequantized:
        storages.append(_DEQUANTIZED)
    groups = list(_group(estimate, storages))
    rows = [
        (
            format_bytes(_of_any(members[0]).memory_bytes),
            *(_word_cell(members[0].get(name)) for name in storages),
            _name_gpus([_of_any(answers).gpu for answers in members]),
        )
        for members in groups
    ]
    unquantized = make_printable(word_unquantized(estimate))
    headers = (
        "memory",
        *(unquantized if name == _NONE else name for name in storages),
        "GPU" if len(groups) == 1 == len(groups[0]) else "GPUs",
    )
    legend = "yes/no: GiB to spare, or missing, on one GPU"
    if any(len(members) > 1 for members in groups):
        legend += ": the first in the row, which has the least memory"
    legend += "."
    if any(_takes_several(fit) for fit in estimate.fits):
        legend += ' ×N: fits on N GPUs with device_map="auto".'
    if len(rows) > 1:
        legend += " `moetool gpus` lists the GPUs."
    return [make_table(headers, rows, right=(0,)), *make_paragraphs([legend], Style.MUTED)]


def _group(estimate: Estimate, storages: Sequence[str]) -> Iterator[Sequence[_Answers]]:
    """Yield the answers for GPUs of about the same memory and with the same answers together."""
    by_gpu: dict[tuple[int, str], dict[str, Fit]] = {}
    for fit in estimate.fits:
        by_gpu.setdefault((fit.memory_bytes, fit.gpu), {})[fit.quantization.value] = fit
    for fit in estimate.fits_dequantized:
        by_gpu[fit.memory_bytes, fit.gpu][_DEQUANTIZED] = fit

    def describe(answers: _Answers) -> tuple[object, ...]:
        found = [answers.get(name) for name in storages]
        does_fit = tuple(None if fit is None else (fit.fits, fit.num_gpus) for fit in found)
        return (round(_of_any(answers).memory_bytes / _GIB), does_fit)

    for _, members in groupby((by_gpu[key] for key in sorted(by_gpu)), key=describe):
        yield list(members)


def _of_any(answers: _Answers) -> Fit:
    return next(iter(answers.values()))


def _name_gpus(names: Sequence[str]) -> Text:
    """Return names on one line, which ends where the terminal does."""
    words = ", ".join(map(make_printable, names))
    return Text(words, no_wrap=len(names) > 1, overflow="ellipsis" if len(names) > 1 else "fold")


def _word_cell(fit: Fit | None) -> Words:
    word = word_fit(fit)
    if fit is None or fit.fits is None:
        return word
    several = f" ×{fit.num_gpus}" if _takes_several(fit) else ""
    return style_words(f"{word}{several}", Style.GOOD if fit.fits else Style.BAD)


def _takes_several(fit: Fit) -> bool:
    return fit.fits is False and fit.num_gpus is not None and fit.num_gpus > 1
