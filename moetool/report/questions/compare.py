"""Render the comparison of two traces as tables, JSON or CSV."""

from __future__ import annotations

from rich.table import Table

from moetool.analysis.comparison.result import (
    ENGINES_DIFFER,
    Agreement,
    Comparison,
    Verdict,
)
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import Block, render_page
from moetool.report.text.pieces import show_context, show_token
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import Cell, make_table
from moetool.report.text.words import word_share
from moetool.wording import number_of

_ROWS_SHOWN = 24
_TOKENS_SHOWN = 5
# In a column of numbers; a word would widen it.
_UNKNOWN = "–"
_ENGINES = f"the roughly {ENGINES_DIFFER:.0%} by which two engines with the same weights differ"
_MEASURES = ("same experts", "sets differ", "95%", "first differs", "weight moved")


def render_table_text(result: Comparison, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, the tables by layer, group and position, and how to read them."""
    # Of equal traces, rows of zeros for each layer are enough.
    differs = result.verdict is not Verdict.IDENTICAL or bool(result.overall.weight_change)
    blocks: tuple[Block, ...] = (
        make_paragraphs(word_verdict(result)),
        [_make_layers(result), *_note_more(len(result.layers), "layer")],
        [_make_groups(result), *_note_more(len(result.groups), "group")] if differs else (),
        [_make_positions(result)] if differs else (),
        _make_token_ids(result),
        _make_tokens(result),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_make_legend(result), Style.MUTED),
    )
    return render_page(blocks, view)


def word_verdict(result: Comparison) -> list[Words]:
    """Return the verdict and the facts behind it, a paragraph each."""
    overall = result.overall
    if result.verdict is Verdict.UNKNOWN:
        return [style_words("No decision of the two traces could be compared.", Style.STRONG)]
    assert overall.changed_decisions is not None
    limits = _word_limits(overall)
    below = "well below" if overall.is_well_below_engines else "below"
    changed = f"{word_share(overall.changed_decisions)} of decisions choose other experts{limits}"
    verdict = {
        Verdict.IDENTICAL: "The same routing: all decisions choose the same experts.",
        Verdict.ALIKE: f"{changed}: {below} {_ENGINES}.",
        Verdict.AS_ENGINES: f"{changed}: not surely different from {_ENGINES}.",
        Verdict.DIFFERENT: f"{changed}: more than {_ENGINES}.",
        Verdict.UNRELATED: "Unrelated routing: the traces have no more experts in common than two "
        "routers that choose independently.",
    }[result.verdict]
    facts = _list_facts(result)
    compared = (
        f"{number_of(overall.num_decisions, 'decision')} in "
        f"{number_of(len(result.layers), 'layer')} compared."
    )
    return [style_words(verdict, Style.STRONG), " ".join([*facts, compared])]


def _list_facts(result: Comparison) -> list[str]:
    overall = result.overall
    if result.verdict is Verdict.IDENTICAL:
        moved = overall.weight_change
        return [f"{_share(moved)} of the weight moved between them."] if moved else []
    by_chance = _share(overall.baseline.overlap)
    if overall.popularity is not None:
        by_chance += f"; with the load of these experts, {_share(overall.popularity.overlap)}"
    facts = [
        f"{_share(overall.overlap)} of the experts are the same (two random routers: {by_chance})."
    ]
    if overall.first_choice_flips is not None:
        facts.append(f"The first choice differs in {_share(overall.first_choice_flips)}.")
    if result.changed_tokens is not None:
        facts.append(
            f"{_share(result.changed_tokens)} of tokens have other experts in at least one layer."
        )
    return facts


def _word_limits(overall: Agreement) -> str:
    if overall.changed_decisions_low is None or overall.changed_decisions_high is None:
        return ""
    low, high = overall.changed_decisions_low, overall.changed_decisions_high
    return f" (95%: {word_share(low)} to {word_share(high)})"


def _make_layers(result: Comparison) -> Table:
    rows = [
        (
            f"{format_stack(layer.stack)}{layer.layer}",
            _share(layer.baseline.overlap),
            *_show_measures(layer),
        )
        for layer in result.layers[:_ROWS_SHOWN]
    ]
    return make_table(("layer", "random", *_MEASURES), rows, right=range(1, 7))


def _make_groups(result: Comparison) -> Table:
    rows = [
        (group.group, f"{group.num_decisions:,}", *_show_measures(group))
        for group in result.groups[:_ROWS_SHOWN]
    ]
    return make_table((result.by, "decisions", *_MEASURES), rows, right=range(1, 7))


def _make_positions(result: Comparison) -> Table:
    rows = [
        (
            f"{span.first_position:,}"
            if span.first_position == span.last_position
            else f"{span.first_position:,}–{span.last_position:,}",
            f"{span.num_decisions:,}",
            *_show_measures(span),
        )
        for span in result.positions
    ]
    return make_table(("position", "decisions", *_MEASURES), rows, right=range(1, 7))


def _show_measures(agreement: Agreement) -> tuple[Cell, ...]:
    low, high = agreement.changed_decisions_low, agreement.changed_decisions_high
    return (
        _share(agreement.overlap),
        style_words(_share(agreement.changed_decisions), Style.STRONG),
        _UNKNOWN if low is None or high is None else f"{low:.1%}–{high:.1%}",
        _share(agreement.first_choice_flips),
        _share(agreement.weight_change),
    )


def _make_token_ids(result: Comparison) -> Block:
    """Return the token ids that changed most; nothing if there are none that occur often."""
    if not result.token_ids:
        return ()
    rows = [
        (
            show_token(item.token, item.token_id),
            f"{item.count:,}",
            style_words(word_share(item.change), Style.STRONG),
            _UNKNOWN
            if item.change_low is None or item.change_high is None
            else f"{item.change_low:.1%}–{item.change_high:.1%}",
        )
        for item in result.token_ids[:_TOKENS_SHOWN]
    ]
    headers = ("tokens that change most", "occurrences", "other experts", "95%")
    return (make_table(headers, rows, right=(1, 2, 3)),)


def _make_tokens(result: Comparison) -> Block:
    """Return the single tokens that changed most; nothing if none did."""
    if not result.tokens:
        return ()
    rows = [
        (
            token.prompt_id,
            f"{token.position:,}",
            f"{token.change:.0%}",
            f"{token.num_changed_layers} of {token.num_layers}",
            show_context(token.before, token.token, token.after)
            if token.token is not None
            else _UNKNOWN,
        )
        for token in result.tokens[:_TOKENS_SHOWN]
    ]
    headers = ("prompt", "position", "other experts", "layers", "in context")
    return (make_table(headers, rows, right=(1, 2, 3)),)


def _make_legend(result: Comparison) -> list[str]:
    random = result.overall.baseline
    legend = [
        "same experts: share of a token's experts that both traces chose, the mean over tokens (the "
        "router saturation of a checkpoint, if the second trace is of the last one). random: the "
        "same for two uniform random routers. sets differ: share of decisions, one token in "
        "one layer each, with any other expert; 95%: its interval, if the prompts are a sample. "
        "first differs: the expert of the largest weight is another one. weight moved: where the "
        "sets agree, the share of weight that moved from one expert to another. Of two random "
        f"routers, {_share(random.changed_decisions)} of sets and "
        f"{_share(random.first_choice_flips)} of first choices would differ, and "
        f"{_share(random.weight_change)} of the weight would move where sets agree.",
    ]
    if result.verdict is not Verdict.IDENTICAL:
        legend.append(
            f"A yardstick: two engines that run the same weights differ in about "
            f"{ENGINES_DIFFER:.0%} of decisions, because kernels and batches round differently "
            "(arXiv 2510.11370)."
        )
    if result.token_ids:
        legend.append(
            "other experts: share of experts that are not the same, the mean over layers. Of "
            f"{number_of(result.num_token_ids, 'token id')} with at least {result.min_count} "
            f"occurrences, {min(_TOKENS_SHOWN, len(result.token_ids))} are shown: among "
            "many, some are large by chance, so see the interval. --format json lists more."
        )
    return legend


def _note_more(number: int, noun: str) -> Block:
    """Return a line on the rows that are left out; nothing if all are shown."""
    left = number - _ROWS_SHOWN
    if left <= 0:
        return ()
    words = f"and {number_of(left, f'more {noun}')}: --format csv or json lists all."
    return tuple(make_paragraphs([words], Style.MUTED))


def _share(share: float | None) -> str:
    return _UNKNOWN if share is None else word_share(share)


def render_json(result: Comparison, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    return envelope.render_json("moetool.compare/1", result.to_dict())


def render_csv(result: Comparison, _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer and group."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Comparison] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
