"""Show several estimates, one row each, with what they have in common above."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from moetool.report.memory.words import (
    word_fit,
    word_gpu,
    word_options,
    word_smallest,
    word_storage,
    word_weights,
)
from moetool.report.text.lines import make_fact, make_notes, make_paragraphs
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable, style_words
from moetool.report.text.tables import Cell, make_table
from moetool.report.text.words import word_size

if TYPE_CHECKING:
    from moetool.memory.answers.on_gpus import Fit
    from moetool.memory.result import Estimate

_Word = Callable[["Estimate"], str]

_SETTINGS: Mapping[str, _Word] = {
    "model": lambda estimate: estimate.model,
    "task": lambda estimate: estimate.scenario.task.value,
    "batch": lambda estimate: f"{estimate.scenario.batch_size:,}",
    "prompt": lambda estimate: f"{estimate.scenario.num_prompt_tokens:,}",
    "new": lambda estimate: f"{estimate.scenario.num_new_tokens:,}",
    "loaded": lambda estimate: word_weights(estimate),
    "options": lambda estimate: word_options(estimate.scenario),
    "method": lambda estimate: estimate.method.value,
    "gpu": lambda estimate: estimate.gpu if estimate.is_gpu_named else "",
}
_FIGURES: Mapping[str, _Word] = {
    "weights": lambda estimate: word_size(estimate.figures.weights_bytes),
    "cache": lambda estimate: word_size(estimate.figures.cache_bytes),
    "allocated": lambda estimate: word_size(estimate.figures.peak_allocated_bytes),
    "total": lambda estimate: word_size(estimate.figures.total_device_bytes),
}
# The last column: whether it fits on the GPU that was named, or the smallest that it fits on.
_FITS: Mapping[bool, tuple[str, _Word]] = {
    True: ("fits", lambda estimate: word_fit(estimate.fit)),
    False: ("fits on", word_smallest),
}
_NUMBERS = ("batch", "prompt", "new", "weights", "cache", "allocated", "total")
# Settings that come with a model more often than with a scenario.
_OF_MODELS = ("model", "loaded", "method")
# Figures that move above the rows when they are the same in all of them.
_OFTEN_THE_SAME = ("weights",)
_APPROXIMATE = "≈"
_LEGEND = (
    "cache: after the last token that runs. allocated: the peak. total: as the device shows it. "
)
_LEGENDS_OF_FITS = {
    True: "fits: on one GPU, with the GiB to spare or missing.",
    False: "fits on: the smallest known GPU that is enough, or several with "
    'device_map="auto". --gpu NAME shows the limits on one.',
}


def list_blocks(estimates: Sequence[Estimate]) -> Iterator[Block]:
    """Yield how many fit, notes, what all have in common, and one row for each."""
    is_gpu_named = all(estimate.is_gpu_named for estimate in estimates)
    fits = dict([_FITS[is_gpu_named]])
    words = {
        label: [make_printable(word(estimate)) for estimate in estimates]
        for label, word in {**_SETTINGS, **_FIGURES, **fits}.items()
    }
    common = {
        label: column[0]
        for label, column in words.items()
        if len(set(column)) == 1 and (label in _SETTINGS or label in _OFTEN_THE_SAME)
    }
    columns = {label: column for label, column in words.items() if label not in common}
    legend = f"{_LEGEND}{_LEGENDS_OF_FITS[is_gpu_named]}"
    if "loaded" in columns:
        columns["loaded"] = list(map(word_storage, estimates))
    if "method" in columns:
        # A mark takes less space than a column.
        columns["total"] = [
            total if method == "simulated" else f"{_APPROXIMATE} {total}"
            for total, method in zip(columns["total"], columns.pop("method"), strict=True)
        ]
        legend += f" {_APPROXIMATE}: under an assumption that a note names."
    yield make_paragraphs(_list_verdict(estimates), Style.STRONG)
    yield make_notes(_find_notes(estimates))
    yield [make_fact(label, word) for label, word in common.items() if word]
    yield from _list_tables(columns, [estimate.fit for estimate in estimates])
    yield make_paragraphs([legend], Style.MUTED)


def _list_tables(
    columns: Mapping[str, Sequence[str]], fits: Sequence[Fit | None]
) -> Iterator[Block]:
    """Yield one table, or one per model if scenarios differ too: both don't fit on a line."""
    has_scenarios = any(label in columns for label in _SETTINGS if label not in _OF_MODELS)
    if "model" not in columns or not has_scenarios:
        yield [_make_table(columns, range(len(fits)), fits)]
        return
    rows_of_model: dict[str, list[int]] = {}
    for row, model in enumerate(columns["model"]):
        rows_of_model.setdefault(model, []).append(row)
    others = {label: column for label, column in columns.items() if label != "model"}
    for model, rows in rows_of_model.items():
        yield make_paragraphs([model], Style.STRONG)
        yield [_make_table(others, rows, fits)]


def _make_table(
    columns: Mapping[str, Sequence[str]], rows: Sequence[int], fits: Sequence[Fit | None]
) -> Table:
    return make_table(
        list(columns),
        [
            [
                _color_fit(column[row], fits[row]) if label == "fits" else column[row]
                for label, column in columns.items()
            ]
            for row in rows
        ],
        right=[number for number, label in enumerate(columns) if label in _NUMBERS],
    )


def _color_fit(word: str, fit: Fit | None) -> Cell:
    if fit is None or fit.fits is None:
        return word
    return style_words(word, Style.GOOD if fit.fits else Style.BAD)


def _list_verdict(estimates: Sequence[Estimate]) -> Iterator[str]:
    does_fit: dict[str, list[bool]] = {}
    for estimate in estimates:
        if estimate.fit is not None and estimate.fits_alone is not None:
            one = f"1 × {word_gpu(estimate.fit)}" if estimate.is_gpu_named else "one known GPU"
            does_fit.setdefault(one, []).append(estimate.fits_alone)
    for one, answers in does_fit.items():
        yield f"{answers.count(True):,} of {len(answers):,} fit on {one}."
    num_unknown = sum(
        estimate.stored is not None and estimate.stored.basis.value == "unknown"
        for estimate in estimates
    )
    if num_unknown:
        yield (
            f"Memory unknown for {num_unknown:,} of {len(estimates):,} estimates: see the notes."
        )


def _find_notes(estimates: Sequence[Estimate]) -> Iterator[str]:
    """Yield each note once, with the name of its model unless all models have it."""
    of_all = set.intersection(*(set(estimate.notes) for estimate in estimates))
    yield from dict.fromkeys(
        note if note in of_all else f"{estimate.model}: {note}"
        for estimate in estimates
        for note in estimate.notes
    )
