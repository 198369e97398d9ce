"""Render the specialization of experts by token as tables, JSON or CSV."""

from __future__ import annotations

from rich.table import Table

from moetool.analysis.specialization.by_token.result import (
    ExpertToken,
    LayerTokenUse,
    TokenSpecialization,
)
from moetool.report import envelope
from moetool.report.questions.specialization.tables import (
    choose_layers,
    format_known,
    name_layer,
    word_left_out,
)
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.numbers import format_place
from moetool.report.text.page import render_page
from moetool.report.text.pieces import show_token
from moetool.report.text.styles import Style, style_words
from moetool.report.text.tables import make_table

_EXPERTS_SHOWN = 30
_TOKENS_SHOWN = 5


def render_table_text(result: TokenSpecialization, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, the layers, the experts of one layer, and how to read them."""
    shown = result.most_decided_layer
    blocks = (
        make_paragraphs([style_words(_word_verdict(result), Style.STRONG)]),
        [_make_layers(result)],
        [_make_experts(result, shown)] if shown else [],
        make_paragraphs(
            [word_left_out(len(result.layers)), _word_experts_left_out(result, shown)],
            Style.MUTED,
        ),
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(
            [_explain_layers(result), _explain_experts() if shown else ""], Style.MUTED
        ),
    )
    return render_page(blocks, view)


def _word_verdict(result: TokenSpecialization) -> str:
    verdict = result.verdict
    if verdict is None:
        return (
            f"No token id occurs {result.min_count:,} times: whether experts specialize by token "
            "is unknown."
        )
    return (
        f"The usual expert of a token id gets {_word_range(verdict.least, verdict.most)} of its "
        f"occurrences{', depending on the layer' if verdict.num_layers > 1 else ''}; under a "
        "router with the same loads that ignores the token it would get "
        f"{_word_range(verdict.least_by_loads, verdict.most_by_loads)}."
    )


def _word_range(least: float, most: float) -> str:
    low, high = f"{least:.0%}", f"{most:.0%}"
    return low if low == high else f"{low[:-1]} to {high}"


def _make_layers(result: TokenSpecialization) -> Table:
    return make_table(
        ("layer", "ids", "tokens", "usual", "loads", "random", "first", "loads", "random"),
        [
            (
                name_layer(layer.stack, layer.layer),
                f"{layer.num_token_ids:,}",
                f"{layer.covered_share:.0%}",
                style_words(format_known(layer.vocabulary_specialization, ".1%"), Style.STRONG),
                *_word_chance(layer, "vocabulary_specialization"),
                style_words(
                    format_known(layer.first_vocabulary_specialization, ".1%"), Style.STRONG
                ),
                *_word_chance(layer, "first_vocabulary_specialization"),
            )
            for layer in choose_layers(result.layers)
        ],
        right=range(1, 9),
    )


def _word_chance(layer: LayerTokenUse, name: str) -> tuple[str, str]:
    """Return a figure of the router with the same loads, and of the uniform one."""
    loads, random = (
        format_known(None if router is None else getattr(router, name), ".1%")
        for router in (layer.loads, layer.baseline)
    )
    return loads, random


def _list_experts(
    result: TokenSpecialization, shown: LayerTokenUse
) -> dict[int, list[ExpertToken]]:
    experts: dict[int, list[ExpertToken]] = {}
    for token in result.tokens:
        if (token.stack, token.layer) == (shown.stack, shown.layer):
            experts.setdefault(token.expert, []).append(token)
    return experts


def _make_experts(result: TokenSpecialization, shown: LayerTokenUse) -> Table:
    rows = []
    for expert, tokens in list(_list_experts(result, shown).items())[:_EXPERTS_SHOWN]:
        rows.append(
            (
                format_place(shown.stack, shown.layer, expert),
                f"{tokens[0].expert_share:.0%}",
                f"{tokens[0].loads.shrunken_lift:.1f}",
                "  ".join(map(_word_token, tokens[:_TOKENS_SHOWN])),
            )
        )
    headers = ("expert", "share", "loads", "most characteristic tokens, with their lift")
    return make_table(headers, rows, right=(1, 2))


def _word_token(token: ExpertToken) -> str:
    return f"{show_token(token.token, token.token_id)} {token.shrunken_lift:.1f}"


def _word_experts_left_out(result: TokenSpecialization, shown: LayerTokenUse | None) -> str:
    if shown is None:
        return ""
    number = len(_list_experts(result, shown))
    if len(result.layers) == 1 and number <= _EXPERTS_SHOWN:
        return ""
    return (
        f"Experts are those of layer {name_layer(shown.stack, shown.layer)}"
        + (f", {_EXPERTS_SHOWN} of {number:,}" if number > _EXPERTS_SHOWN else "")
        + "; --layers shows those of another, --format csv has all."
    )


def _explain_layers(result: TokenSpecialization) -> str:
    return (
        f"ids: token ids with at least {result.min_count:,} occurrences, and their share of all "
        "tokens. usual: share of a token id's occurrences that choose the expert it chooses most, "
        "the mean over ids (vocabulary specialization). first: the same for first choices. loads: "
        "under a router with the same loads that ignores the token, at the same numbers of "
        "occurrences. random: under a uniform random router."
    )


def _explain_experts() -> str:
    return (
        "share: of the layer's tokens that the expert gets. lift: share of the token's occurrences "
        "over that share, shrunk as if 10 more occurrences chose as all tokens do. loads: the "
        "largest lift of a token under a router with the same loads that ignores the token."
    )


def render_json(result: TokenSpecialization, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    return envelope.render_json("moetool.specialize/1", result.to_dict())


def render_csv(result: TokenSpecialization, _: View = DEFAULT_VIEW) -> str:
    """Return one row per layer, expert and characteristic token."""
    return envelope.render_rows([result])


RENDERERS: Renderers[TokenSpecialization] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
