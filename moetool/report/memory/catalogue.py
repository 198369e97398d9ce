"""Show which models of the catalogue run on a GPU, as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from moetool.report import envelope
from moetool.report.memory.words import word_card, word_loading, word_run
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_fact, make_paragraphs
from moetool.report.text.numbers import format_number_of
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, style_words
from moetool.report.text.tables import make_table
from moetool.report.text.words import UNKNOWN, word_count, word_size

if TYPE_CHECKING:
    from moetool.memory.fitting.catalogue_fits import CatalogueFits
    from moetool.memory.fitting.model_fit import ModelFit

_WHOLE_CONTEXT = "*"
_NOT_SIMULATED = "+"
_PUBLISHED = "†"
_LEGENDS = {
    _WHOLE_CONTEXT: "only the model's context limits the prompt",
    _NOT_SIMULATED: "longer prompts may fit too: they are not simulated",
    _PUBLISHED: "with its weights packed as published, which depends on the packages installed",
}
_LONGEST = "prompt: the longest that fits, in tokens, at this batch size and number of new tokens"


def render_table_text(result: CatalogueFits, view: View = DEFAULT_VIEW) -> str:
    """Return a table of the models that run, and a line on those that don't.

    A view of all also lists the models that don't, and why others are unknown.
    """
    fitting, too_large, unknown = result.fitting, result.too_large, result.unknown
    blocks: list[Block] = [_make_headline(result)]
    if fitting:
        blocks.append([_make_fitting(fitting)])
    if view.lists_all and too_large:
        blocks.append([_make_too_large(too_large)])
    elif too_large and len(result.models) > 1:
        blocks.append(make_paragraphs([_word_nearest(too_large)]))
    shown = [*fitting, *(too_large if view.lists_all else ())]
    blocks.append(make_paragraphs(_list_notes(shown)))
    reasons = [*unknown, *(model for model in fitting if model.reason is not None)]
    if view.lists_all or not unknown or len(result.models) == 1:
        blocks.append(make_paragraphs(f"{model.model}: {model.reason}" for model in reasons))
    else:
        names = ", ".join(model.model for model in unknown)
        blocks.append(make_paragraphs([f"No answer for {names}. --all shows why."]))
    marks = "".join(map(_mark, fitting))
    legend = [f"{mark} {words}" for mark, words in _LEGENDS.items() if mark in marks]
    blocks.append(make_paragraphs(["; ".join([_LONGEST, *legend])] if fitting else [], Style.MUTED))
    return render_page(blocks, view)


def render_json(result: CatalogueFits, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, sizes in bytes and unknown values as null."""
    libraries = envelope.MODEL_LIBRARIES
    return envelope.render_json("moetool.fits/1", result.to_dict(), libraries=libraries)


def render_csv(result: CatalogueFits, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each model of the catalogue."""
    return envelope.render_rows([result])


RENDERERS: Renderers[CatalogueFits] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _make_headline(result: CatalogueFits) -> Block:
    return [
        *make_paragraphs([_word_verdict(result)], Style.STRONG),
        make_fact("run", word_run(result.scenario)),
        make_fact("weights", word_loading(result.scenario)),
    ]


def _word_verdict(result: CatalogueFits) -> str:
    """Return how many models run and of how many that is unknown, or what holds for the only one."""
    gpu = f"1 × {word_card(result.gpu.id, result.gpu.memory_bytes)}"
    if len(result.models) == 1:
        (model,) = result.models
        if model.fits is None:
            return f"Whether {model.model} runs on {gpu} is unknown."
        if model.fits:
            return f"{model.model} runs on {gpu}."
        return f"{model.model} doesn't run on {gpu}: short by {_word_shortage(model)}."
    number, num_unknown = len(result.fitting), len(result.unknown)
    verb = "runs" if number == 1 else "run"
    words = f"{number:,} of {format_number_of(len(result.models), 'model')} {verb} on {gpu}"
    if num_unknown:
        words += f"; {num_unknown:,} {'is' if num_unknown == 1 else 'are'} unknown"
    return f"{words}."


def _list_notes(models: Sequence[ModelFit]) -> Iterator[str]:
    """Yield each note on a run, with the models that it holds for."""
    names: dict[str, list[str]] = {}
    for model in models:
        # A run whose size was not looked at has nothing to note.
        if model.note is not None and model.least_shortage_bytes is None:
            names.setdefault(model.note, []).append(model.model)
    for note, those in names.items():
        yield f"{', '.join(those)}: {note}"


def _make_fitting(models: Sequence[ModelFit]) -> Table:
    return make_table(
        ("model", "total", "active", "weights", "to spare", "prompt", ""),
        [
            (
                model.model,
                word_count(model.params),
                word_count(model.active_params),
                word_size(model.weights_bytes),
                style_words(word_size(model.headroom_bytes), Style.GOOD),
                _word_tokens(model.longest_prompt_tokens),
                _mark(model),
            )
            for model in models
        ],
        right=(1, 2, 3, 4, 5),
    )


def _make_too_large(models: Sequence[ModelFit]) -> Table:
    return make_table(
        ("doesn't run", "total", "active", "weights", "short by"),
        [
            (
                model.model,
                word_count(model.params),
                word_count(model.active_params),
                word_size(model.weights_bytes),
                style_words(_word_shortage(model), Style.BAD),
            )
            for model in models
        ],
        right=(1, 2, 3, 4),
    )


def _word_nearest(models: Sequence[ModelFit]) -> str:
    """Return how many models are too large, and the one that lacks least."""
    nearest = models[0]
    verb = "doesn't" if len(models) == 1 else "don't"
    return (
        f"{format_number_of(len(models), 'model')} {verb} run; the nearest is {nearest.model}, short "
        f"by {_word_shortage(nearest)}. --all lists them."
    )


def _word_shortage(model: ModelFit) -> str:
    size = word_size(model.shortage_bytes)
    return size if model.headroom_bytes is not None else f"at least {size}"


def _word_tokens(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _mark(model: ModelFit) -> str:
    marks = (
        (model.is_whole_context, _WHOLE_CONTEXT),
        (model.may_be_longer, _NOT_SIMULATED),
        (model.weights_basis == "as-published", _PUBLISHED),
    )
    return "".join(mark for is_marked, mark in marks if is_marked)
