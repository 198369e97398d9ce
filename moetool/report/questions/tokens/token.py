"""Render the experts that one token gets as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator

from moetool.analysis.tokens.one_token import TokenExperts, TokenLayer
from moetool.report import envelope
from moetool.report.questions.tokens.words import show_layer, show_share
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.pieces import show_token
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.wording import number_of

_LAYERS_SHOWN = 60
_EXPERTS_SHOWN = 3


def render_table_text(result: TokenExperts, view: View = DEFAULT_VIEW) -> str:
    """Return a verdict, a table of layers, and how to read it."""
    ids = " and ".join(map(str, result.token_ids[:4]))
    name = show_token(result.token, result.token_ids[0])
    verdict = (
        f"{name} (id {ids}) occurs {number_of(result.count, 'time')} in "
        f"{number_of(result.num_prompts, 'prompt')}"
        + (
            f"; its first choice never changes in {result.num_fixed_layers} of "
            f"{number_of(result.num_judged_layers, 'layer')}."
            if result.num_judged_layers
            else "."
        )
    )
    blocks: list[Block] = [make_paragraphs([style_words(verdict, Style.STRONG)])]
    rows = [_make_row(layer) for layer in result.layers[:_LAYERS_SHOWN]]
    headers = ("layer", "tokens", "usual", "share", "loads", "random", "experts")
    blocks.append([make_table(headers, rows, right=(1, 3, 4, 5))])
    blocks.append(make_paragraphs(_describe_cuts(result), Style.MUTED))
    blocks.append(make_paragraphs(result.notes, Style.WARNING))
    blocks.append(make_paragraphs(_make_legend(), Style.MUTED))
    return render_page(blocks, view)


def _make_row(layer: TokenLayer) -> tuple[Words, ...]:
    experts = ", ".join(
        f"E{expert.expert} {expert.share:.0%}" for expert in layer.experts[:_EXPERTS_SHOWN]
    )
    return (
        show_layer(layer),
        f"{layer.count:,}",
        "–" if layer.usual_expert is None else f"E{layer.usual_expert}",
        style_words(show_share(layer.usual_share), Style.STRONG),
        show_share(layer.loads.usual_share if layer.loads else None),
        show_share(layer.baseline.usual_share if layer.baseline else None),
        f"{experts}{', …' if len(layer.experts) > _EXPERTS_SHOWN else ''}",
    )


def _describe_cuts(result: TokenExperts) -> Iterator[str]:
    if len(result.layers) > _LAYERS_SHOWN:
        yield (
            f"The first {_LAYERS_SHOWN} layers of {len(result.layers)} are shown; --layers chooses "
            "others, and --format json has all."
        )


def _make_legend() -> Iterator[str]:
    yield (
        "usual: the token's most frequent first choice. share: share of its first choices. loads: "
        "the same under a router with the same loads that ignores the token, for as many "
        "occurrences. random: under a uniform random router. experts: those that the token gets "
        "most, at any rank, with the share of its occurrences."
    )


def render_json(result: TokenExperts, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, unrounded."""
    return envelope.render_json("moetool.tokens/1", result.to_dict())


def render_csv(result: TokenExperts, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each layer and expert that the token gets."""
    return envelope.render_rows([result])


RENDERERS: Renderers[TokenExperts] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
