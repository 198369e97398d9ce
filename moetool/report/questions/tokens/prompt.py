"""Render a prompt as a table of tokens and layers, as JSON or as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from moetool.analysis.tokens.one_prompt import PromptRouting
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.pieces import show_token
from moetool.report.text.styles import Style, style_words
from moetool.report.trace_excerpt import make_token_tables
from moetool.trace.excerpt import StackExcerpt
from moetool.wording import number_of

# Of the prompt, and again of those written.
_TOKENS_SHOWN = 30


def render_table_text(result: PromptRouting, view: View = DEFAULT_VIEW) -> str:
    """Return the prompt's name, the table of each stack, and how to read it."""
    name = printable(result.prompt_id, max_length=60)
    verdict = (
        f"Prompt {name}, domain {printable(result.domain, max_length=60)}: "
        f"{number_of(len(result.tokens), 'token')}."
    )
    blocks: list[Block] = [make_paragraphs([style_words(verdict, Style.STRONG)])]
    stacks = _show_pieces(result, result.excerpt(num_listed=_TOKENS_SHOWN))
    if stacks:
        blocks += make_token_tables(stacks, result.routed_layers, view)
    num_shown = sum(len(stack.tokens) for stack in stacks)
    blocks.append(make_paragraphs(_describe_cuts(len(result.tokens) - num_shown), Style.MUTED))
    blocks.append(make_paragraphs(result.notes, Style.WARNING))
    return render_page(blocks, view)


def _show_pieces(result: PromptRouting, stacks: Sequence[StackExcerpt]) -> tuple[StackExcerpt, ...]:
    """Return the tokens with the texts that their pieces stand for."""
    names = {
        (token.stack, token.position): show_token(token.token, token.token_id)
        for token in result.tokens
        if token.token_id is not None
    }
    return tuple(
        replace(
            stack,
            tokens=tuple(
                replace(token, piece=names.get((stack.stack, token.position), token.piece))
                for token in stack.tokens
            ),
        )
        for stack in stacks
    )


def _describe_cuts(num_left: int) -> Iterator[str]:
    if num_left:
        yield f"{number_of(num_left, 'token')} in between: --format csv has all, with weights."


def render_json(result: PromptRouting, _: View = DEFAULT_VIEW) -> str:
    """Return every token and its decisions as one JSON object, unrounded."""
    return envelope.render_json("moetool.tokens/1", result.to_dict())


def render_csv(result: PromptRouting, _: View = DEFAULT_VIEW) -> str:
    """Return one row for each assignment of the prompt."""
    return envelope.render_rows([result])


RENDERERS: Renderers[PromptRouting] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
