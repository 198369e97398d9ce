"""Render a selection of experts as a page, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.result import LayerSelection, Selection
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import Paragraph, make_facts, make_notes, make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.wording import number_of

_LAYERS_SHOWN = 30
_EXPERTS_SHOWN = 10
_NAMES_SHOWN = 6
_UNKNOWN = "–"
_SCORE_WORDS = {
    Score.TOKEN: "share of a layer's assignments",
    Score.GATE: "mean routing weight",
}


def render_table_text(result: Selection, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, each layer's experts, what is dropped, and how to read them."""
    shown = result.layers[:_LAYERS_SHOWN]
    blocks: tuple[Block, ...] = (
        make_paragraphs([style_words(_word_verdict(result), Style.STRONG)]),
        make_paragraphs([_word_stability(result)]),
        [_make_layers(shown)],
        make_notes(_list_left_out(result)),
        _make_pruning(result),
        _make_names(result),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_list_legend(result), Style.MUTED),
    )
    return render_page(blocks, view)


def _word_verdict(result: Selection) -> str:
    if not result.num_experts or result.baseline is None:
        return "No layer has a decision: no expert is selected."
    domains = "" if result.domains is None else f" for {_word_domains(result.domains)}"
    return (
        f"{number_of(result.num_selected, 'expert')} of {result.num_experts:,} "
        f"({result.num_selected / result.num_experts:.1%}) reach a {_by(result)} score of "
        f"{result.top_p:g} in their layers{domains}; a random router would need "
        f"{result.baseline.num_selected:,.0f}."
    )


def _by(result: Selection) -> str:
    return str(Score.TOKEN if result.by is Score.SALIENCY else result.by)


def _word_domains(domains: Sequence[str]) -> str:
    return ", ".join(printable(name, max_length=40) for name in domains)


def _word_stability(result: Selection) -> str:
    prompts = number_of(result.num_prompts, "prompt")
    random = None if result.baseline is None else result.baseline.overlap
    if result.overlap is None or random is None:
        return ""
    return (
        f"Chosen from either half of the prompts, {result.overlap:.0%} of the selection is the "
        f"same; of a random router's it would be {random:.0%} ({prompts})."
    )


def _make_layers(shown: Sequence[LayerSelection]) -> Table:
    return make_table(
        ("layer", "experts", "of", "score", "random needs", "same in halves", "missed"),
        [_make_row(layer) for layer in shown],
        right=(2, 3, 4, 5, 6),
    )


def _make_row(layer: LayerSelection) -> tuple[Words, ...]:
    more = len(layer.selected) - _EXPERTS_SHOWN
    experts = " ".join(map(str, layer.selected[:_EXPERTS_SHOWN]))
    return (
        f"{format_stack(layer.stack)}{layer.layer}",
        style_words(
            (f"{experts} and {more} more" if more > 0 else experts) or "none", Style.STRONG
        ),
        f"{len(layer.selected)}/{layer.num_experts}",
        _format(layer.selected_score, ".3f"),
        _format(None if layer.baseline is None else layer.baseline.num_selected, ".1f"),
        _format(layer.overlap, ".0%"),
        f"{len(layer.missed)}",
    )


def _list_left_out(result: Selection) -> Iterator[str]:
    more = len(result.layers) - _LAYERS_SHOWN
    if more > 0:
        yield f"{number_of(more, 'more layer')}: --format json or csv has all."


def _make_pruning(result: Selection) -> list[Table]:
    if result.pruning is None:
        return []
    pruning = result.pruning
    return [
        make_table(
            ("layer", "drop", "of", "their assignments", "same in halves"),
            [
                (
                    f"{format_stack(layer.stack)}{layer.layer}",
                    " ".join(map(str, layer.dropped[:_EXPERTS_SHOWN]))
                    + (" …" if len(layer.dropped) > _EXPERTS_SHOWN else ""),
                    f"{len(layer.dropped)}/{len(layer.dropped) + len(layer.retained)}",
                    _format(layer.dropped_share, ".1%"),
                    _format(layer.overlap, ".0%"),
                )
                for layer in pruning.layers[:_LAYERS_SHOWN]
            ],
            right=(2, 3, 4),
        )
    ]


def _make_names(result: Selection) -> list[Paragraph]:
    names = result.freeze_list
    if names is None:
        return []
    lines = [
        f"{name}: rows {' '.join(map(str, rows[:_EXPERTS_SHOWN]))}"
        + (" …" if len(rows) > _EXPERTS_SHOWN else "")
        for name, rows in list(names.rows.items())[:_NAMES_SHOWN]
    ]
    more = len(names.trainable) - len(lines)
    if more > 0:
        lines.append(f"and {number_of(more, 'more pattern')}: --export freeze-list has all.")
    return list(make_facts("train", lines or ["nothing"]))


def _list_legend(result: Selection) -> Iterator[str]:
    average = (
        "over all tokens"
        if result.average is Average.MICRO
        else "the mean over prompts of each prompt's own"
    )
    score = Score.TOKEN if result.by is Score.SALIENCY else result.by
    yield (
        f"experts: those with the highest {score} score ({_SCORE_WORDS[score]}, {average}), until "
        f"their scores add up to {result.top_p:g}, as ESFT selects them; ties go to the smaller id. "
        "score: their sum. random needs: how many would be selected from a uniform random router, "
        "which has the trace's tokens and weights. same in halves: the share of the selection that two random halves of the prompts "
        f"agree on. missed: experts that no token chose; a random router misses "
        f"{_word_missed(result)}."
    )
    if result.pruning is not None:
        pruning = result.pruning
        groups = f" in each of {pruning.num_groups} groups" if pruning.num_groups > 1 else ""
        yield (
            f"drop: the experts with the smallest {pruning.by} score{groups}. their assignments: the "
            f"share that chose one of them; of a random router's {_format(pruning.baseline.dropped_share, '.1%')}, "
            "the mean over layers. same in halves: the share of them that two random halves of the "
            "prompts agree on; of a random router's, they agree on "
            f"{_format(pruning.baseline.overlap, '.0%')}."
        )
    if result.freeze_list is not None:
        yield (
            "train: parameters that hold selected experts, and the rows that are theirs; set the "
            "gradient of the other rows to zero, and use no weight decay on them."
        )


def _word_missed(result: Selection) -> str:
    if result.baseline is None:
        return "as many"
    most = result.baseline.num_missed
    return "none" if most < 0.05 else f"{most:.1f} in all layers"


def _format(value: float | None, spec: str) -> str:
    return _UNKNOWN if value is None else format(value, spec)


def render_json(result: Selection, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, which ESFT takes as its `expert_cfg.json`."""
    return envelope.render_json("moetool.select/1", result.to_dict())


def render_csv(result: Selection, _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and expert."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Selection] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
