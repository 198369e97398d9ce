"""Render the tokens that one expert gets as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from moetool.analysis.tokens.expert_tokens import ExpertTokens
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.questions.tokens.words import show_layer, show_share
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.pieces import show_context, show_token
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table

_TOKENS_SHOWN = 30
_CONTEXTS_SHOWN = 12
_GROUPS_SHOWN = 12
_LONGEST_GROUP = 40
_LONGEST_PROMPT_ID = 24


def render_table_text(result: ExpertTokens, view: View = DEFAULT_VIEW) -> str:
    """Return a verdict, a table of tokens, one of contexts, and how to read them."""
    verdict = (
        f"Expert {result.expert} of layer {show_layer(result)} gets {result.share:.1%} of the tokens "
        f"(random: {result.baseline.share:.1%}): {result.count:,} tokens, with {result.num_token_ids:,} "
        f"of the layer's {result.num_layer_ids:,} ids."
    )
    blocks: list[Block] = [make_paragraphs([style_words(verdict, Style.STRONG)])]
    if result.tokens:
        blocks.append([_make_tokens(result)])
        if result.by_group:
            blocks.append([_make_groups(result)])
        blocks.append([_make_contexts(result)])
        blocks.append(make_paragraphs(_describe_cuts(result), Style.MUTED))
    blocks.append(make_paragraphs(result.notes, Style.WARNING))
    if result.tokens:
        blocks.append(make_paragraphs(_make_legend(result), Style.MUTED))
    return render_page(blocks, view)


def _make_tokens(result: ExpertTokens) -> Table:
    rows: list[tuple[Words, ...]] = [
        (
            show_token(token.token, token.token_id),
            f"{token.token_id}",
            f"{token.count:,}",
            "–" if token.first_count is None else f"{token.first_count:,}",
            f"{token.num_tokens:,}",
            style_words(show_share(token.share), Style.STRONG),
            f"{token.lift:.2f}",
        )
        for token in result.tokens[:_TOKENS_SHOWN]
    ]
    headers = ("token", "id", "count", "first", "of", "share", "lift")
    return make_table(headers, rows, right=range(1, 7))


def _make_groups(result: ExpertTokens) -> Table:
    rows: list[tuple[Words, ...]] = [
        (
            printable(group.group, max_length=_LONGEST_GROUP),
            f"{group.num_tokens:,}",
            style_words(show_share(group.share), Style.STRONG),
            show_share(group.baseline.share),
            "  ".join(
                f"{show_token(token.token, token.token_id)} {token.count:,}"
                for token in group.tokens
            ),
        )
        for group in result.by_group[:_GROUPS_SHOWN]
    ]
    headers = (
        printable(result.by, max_length=_LONGEST_GROUP),
        *("tokens", "share", "random", "most frequent tokens, with their count"),
    )
    return make_table(headers, rows, right=(1, 2, 3))


def _make_contexts(result: ExpertTokens) -> Table:
    rows: list[tuple[Words, ...]] = [
        (
            show_context(context.before, context.token, context.after),
            "–" if context.weight is None else f"{context.weight:.3f}",
            printable(context.prompt_id, max_length=_LONGEST_PROMPT_ID),
            f"{context.position:,}",
        )
        for context in result.contexts[:_CONTEXTS_SHOWN]
    ]
    return make_table(("context", "weight", "prompt", "position"), rows, right=(1, 3))


def _describe_cuts(result: ExpertTokens) -> Iterator[str]:
    left = result.num_token_ids - min(len(result.tokens), _TOKENS_SHOWN)
    if left:
        yield f"{left:,} more token ids: --format csv has all, each with its context."
    if len(result.by_group) > _GROUPS_SHOWN:
        yield (
            f"The first {_GROUPS_SHOWN} groups of {len(result.by_group):,} are shown; --format json "
            "has all."
        )


def _make_legend(result: ExpertTokens) -> Iterator[str]:
    yield (
        "count: the token's decisions that choose the expert. first: those in which its weight is "
        "the largest. of: occurrences of the token. share: count of these; a random router gives "
        f"{result.baseline.share:.1%}. lift: share over the expert's share of all tokens, which says "
        "little for a token with few occurrences."
    )
    chosen = "a sample" if result.contexts[0].weight is None else "those of the largest weights"
    yield f"context: the token in its prompt, at most one of each token id; {chosen}."


def render_json(result: ExpertTokens, _: View = DEFAULT_VIEW) -> str:
    """Return what is listed as one JSON object, unrounded."""
    return envelope.render_json("moetool.tokens/1", result.to_dict())


def render_csv(result: ExpertTokens, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each token id that the expert gets."""
    return envelope.render_rows([result])


RENDERERS: Renderers[ExpertTokens] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
