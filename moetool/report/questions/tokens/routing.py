"""Render how far routing is decided by the token alone, as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from moetool.analysis.tokens.result import FrequentToken, LayerTokens, TokenRouting
from moetool.report import envelope
from moetool.report.questions.tokens.words import show_layer, show_share
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.pieces import show_token
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.wording import number_of

_LAYERS_SHOWN = 30
_TOKENS_SHOWN = 20
_EXPERTS_SHOWN = 3


def render_table_text(result: TokenRouting, view: View = DEFAULT_VIEW) -> str:
    """Return a verdict, a table of layers, one of frequent tokens, and how to read them."""
    blocks: list[Block] = [make_paragraphs(_make_verdict(result))]
    judged = [layer for layer in result.layers if layer.fixed_share is not None]
    if judged:
        blocks.append([_make_layers(result.layers[:_LAYERS_SHOWN])])
    if result.tokens:
        blocks.append([_make_tokens(result.tokens[:_TOKENS_SHOWN])])
    blocks.append(make_paragraphs(_describe_cuts(result), Style.MUTED))
    blocks.append(make_paragraphs(result.notes, Style.WARNING))
    if judged:
        blocks.append(make_paragraphs(_make_legend(result), Style.MUTED))
    return render_page(blocks, view)


def _make_verdict(result: TokenRouting) -> Iterator[Text]:
    ordered, answer = result.predicted_layers, result.verdict
    if ordered:
        least, most = ordered[0], ordered[-1]
        assert least.prediction is not None
        assert most.prediction is not None
        popular = f"{most.prediction.popularity:.0%}"
        rates = f"{most.prediction.hit_rate:.0%} (layer {show_layer(most)})"
        if least is not most:
            rates = f"{least.prediction.hit_rate:.0%} (layer {show_layer(least)}) to {rates}"
            popular = f"{least.prediction.popularity:.0%} and {popular}"
        helps = "predicts" if answer.does_predict else "doesn't help to predict"
        yield style_words(
            f"A token's id alone {helps} first choices: on prompts that were not used for it, it "
            f"finds {rates} of them; the layer's most popular expert is {popular}.",
            Style.STRONG,
        )
    if answer.least_fixed_share is None:
        yield style_words("Whether tokens decide the routing is unknown.", Style.STRONG)
        return
    least_fixed, most_fixed = map(show_share, (answer.least_fixed_share, answer.most_fixed_share))
    spread = least_fixed if least_fixed == most_fixed else f"{least_fixed} to {most_fixed}"
    yield style_words(
        f"The first choice never changes for {spread} of the token ids with at least "
        f"{number_of(result.min_count, 'occurrence')}, by layer; under a random router for "
        f"{show_share(answer.baseline_fixed_share)}.",
        Style.STRONG,
    )


def _make_layers(layers: Sequence[LayerTokens]) -> Table:
    rows: list[tuple[Words, ...]] = []
    for layer in layers:
        prediction = layer.prediction
        rows.append(
            (
                show_layer(layer),
                f"{layer.num_frequent:,}",
                style_words(show_share(layer.fixed_share), Style.STRONG),
                show_share(layer.loads.fixed_share if layer.loads else None),
                style_words(show_share(layer.usual_share), Style.STRONG),
                show_share(layer.loads.usual_share if layer.loads else None),
                show_share(layer.baseline.usual_share if layer.baseline else None),
                style_words(show_share(prediction.hit_rate if prediction else None), Style.STRONG),
                show_share(prediction.popularity if prediction else None),
                show_share(prediction.baseline.hit_rate if prediction else None),
            )
        )
    headers = (
        *("layer", "ids", "never change", "loads", "usual", "loads", "random"),
        *("predicted", "popular", "random"),
    )
    return make_table(headers, rows, right=range(1, 10))


def _make_tokens(tokens: Sequence[FrequentToken]) -> Table:
    rows: list[tuple[Words, ...]] = []
    for token in tokens:
        experts = list(token.usual_experts.items())
        shown = " ".join(f"L{layer}.E{expert}" for layer, expert in experts[:_EXPERTS_SHOWN])
        rows.append(
            (
                show_token(token.token, token.token_id),
                f"{token.token_id}",
                f"{token.num_tokens:,}",
                f"{token.num_fixed} of {token.num_layers}",
                style_words(show_share(token.usual_share), Style.STRONG),
                show_share(token.loads.usual_share),
                show_share(token.baseline.usual_share),
                f"{shown}{' …' if len(experts) > _EXPERTS_SHOWN else ''}",
            )
        )
    headers = (
        *("token", "id", "tokens", "never changes"),
        *("usual", "loads", "random", "usual experts"),
    )
    return make_table(headers, rows, right=(1, 2, 3, 4, 5, 6))


def _describe_cuts(result: TokenRouting) -> Iterator[str]:
    if len(result.layers) > _LAYERS_SHOWN:
        yield (
            f"The first {_LAYERS_SHOWN} layers of {len(result.layers)} are shown; --layers chooses "
            "others, and --format json has all."
        )
    if result.tokens:
        yield "The most frequent token ids are shown; --format csv has all, layer by layer."


def _make_legend(result: TokenRouting) -> Iterator[str]:
    yield (
        f"ids: token ids with at least {number_of(result.min_count, 'occurrence')} in the layer. "
        "never change: share of them whose first choice is always the same. usual: share of their "
        "occurrences that go to the id's most frequent first choice. loads: the same under a "
        "router with the same loads that ignores the token, for as many occurrences. random: under "
        "a uniform random router."
    )
    yield (
        "predicted: share of first choices that are the usual one of the token's id in the other "
        "half of the prompts. popular: the same for the expert that is chosen most. random: 1 "
        "divided by the number of experts."
    )
    yield (
        "A router without training looks at little but the token: a high share does not show that "
        "the model has learned to route by vocabulary."
    )


def render_json(result: TokenRouting, _: View = DEFAULT_VIEW) -> str:
    """Return everything but the single ids of each layer as one JSON object, unrounded."""
    return envelope.render_json("moetool.tokens/1", result.to_dict())


def render_csv(result: TokenRouting, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each layer and each id with enough occurrences."""
    return envelope.render_rows([result])


RENDERERS: Renderers[TokenRouting] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
