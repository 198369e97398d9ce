"""Render the checks of a trace as a page, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from moetool.analysis.validation.result import Check, ValidatedLayer, Validation
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import Paragraph, make_fact, make_paragraphs
from moetool.report.text.numbers import format_stack
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import make_table
from moetool.report.text.words import word_share
from moetool.trace.model_counts import ModelCounts
from moetool.wording import format_count, number_of

_LAYERS_SHOWN = 20
_DOMAINS_NAMED = 8
# Columns of the words of a check, which are broken even in a pipe: the table would be 125 wide.
_WORDS_WIDTH = 48
# In the order in which a reader wants to see them.
_STYLES = {
    "failed": Style.BAD,
    "noted": Style.WARNING,
    "skipped": Style.MUTED,
    "passed": Style.GOOD,
}
_WEIGHTS = {True: "weights", False: "no weights"}
_RANKS = {True: "experts in order of their weights", False: "no order of a decision's experts"}


def render_table_text(result: Validation, view: View = DEFAULT_VIEW) -> str:
    """Return a verdict, what the trace is, all checks, its layers, and what it can answer.

    Checks that failed come first. If one did, no question is listed: all refuse the trace.
    """
    blocks: list[Block] = [
        make_paragraphs([_make_verdict(result)]),
        list(_make_facts(result)),
        [_make_checks(result.checks)],
        [_make_layers(result.layers)],
        [_make_answers(result)] if result.is_valid else [],
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_make_legend(result), Style.MUTED),
    ]
    return render_page(blocks, view)


def _make_verdict(result: Validation) -> Text:
    name = f"'{printable(result.trace.trace)}'" if result.trace.trace else "The frame"
    number = {
        kind: sum(check.result == kind for check in result.checks)
        for kind in ("passed", "failed", "noted", "skipped")
    }
    others = ", ".join(
        f"{number[kind]} {kind}" for kind in ("passed", "noted", "skipped") if number[kind]
    )
    if result.is_valid:
        return style_words(f"{name} is a valid trace. Its checks: {others}.", Style.STRONG)
    failed = number_of(number["failed"], "check")
    others = f" ({others})" if others else ""
    return style_words(f"{name} is not a valid trace: {failed} failed{others}.", Style.STRONG)


def _make_facts(result: Validation) -> Iterator[Paragraph]:
    trace = result.trace
    if trace.model:
        revision = f" at {printable(trace.revision, max_length=12)}" if trace.revision else ""
        yield make_fact("model", f"{printable(trace.model)}{revision}")
    yield from _make_counts(result.model_counts)
    files = f" in {number_of(result.num_files, 'file')}" if result.num_files > 1 else ""
    yield make_fact(
        "holds",
        f"{number_of(result.num_rows, 'row')}{files}: {number_of(trace.num_prompts or 0, 'prompt')}, "
        f"{number_of(trace.num_tokens or 0, 'token')}, {number_of(result.num_decisions, 'decision')}, "
        f"{number_of(trace.num_assignments, 'assignment')}",
    )
    if "domain" in result.columns:
        named = [printable(name, max_length=40) for name in result.domains[:_DOMAINS_NAMED]]
        more = len(result.domains) - len(named)
        yield make_fact("domains", ", ".join(named) + (f" and {more} more" if more else ""))
    if result.has_metadata:
        complete = "complete" if trace.complete else "unfinished"
        state = f"{complete}, {'exact' if trace.exact else 'not exact'}"
    else:
        state = "no metadata: it doesn't say how it was made"
    parts = (state, _RANKS[result.has_rank_order], _WEIGHTS["weight" in result.columns])
    yield make_fact("state", "; ".join(parts))
    yield make_fact("columns", ", ".join(result.columns))


def _make_counts(counts: ModelCounts) -> Iterator[Paragraph]:
    if counts.total_parameters is not None:
        words = format_count(counts.total_parameters)
        if counts.active_parameters is not None and counts.active_share is not None:
            share = word_share(counts.active_share)
            words += f", of which a token runs {format_count(counts.active_parameters)} ({share})"
        yield make_fact("parameters", words)
    if counts.flops_per_token is not None:
        words = f"{format_count(counts.flops_per_token)} FLOPs per token"
        if counts.flops_prompt_tokens is not None:
            words += f" (of {counts.flops_prompt_tokens:,})"
        if counts.flops_ratio is not None:
            words += f", {word_share(counts.flops_ratio)} of a dense model's"
        yield make_fact("prefill", words)


def _make_checks(checks: Sequence[Check]) -> Table:
    rows: list[tuple[Words, Words, Words, Words]] = []
    for check in sorted(checks, key=lambda check: list(_STYLES).index(check.result)):
        place = _find_place(check)
        message = check.message and (
            f"{check.message}; first at {place}" if place else check.message
        )
        rows.append(
            (
                check.check,
                style_words(check.result, _STYLES[check.result]),
                f"{check.num_faults:,}" if check.num_faults else "",
                message or style_words(check.meaning, Style.MUTED),
            )
        )
    if any(check.num_faults for check in checks):
        headers = ("check", "result", "faults", "what holds or fails")
        table = make_table(headers, rows, right=(2,))
    else:
        sound = [(name, state, words) for name, state, _, words in rows]
        table = make_table(("check", "result", "what holds"), sound)
    table.columns[-1].max_width = _WORDS_WIDTH
    return table


def _find_place(check: Check) -> str:
    """Return where the first fault is, unless its message says so."""
    if check.file is None or check.layer is None:
        return ""
    prompt = f"prompt '{printable(check.prompt_id or '', max_length=40)}'"
    return (
        f"{prompt}, {format_stack(check.stack or 'decoder')}layer {check.layer}, "
        f"position {check.position}"
    )


def _make_layers(layers: Sequence[ValidatedLayer]) -> Table:
    """Return a table of layers; neighbours of one shape share a line."""
    groups: list[list[ValidatedLayer]] = []
    for layer in layers:
        if groups and _shape(groups[-1][0]) == _shape(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    rows: list[tuple[Words, ...]] = []
    for group in groups[:_LAYERS_SHOWN]:
        first, last = group[0], group[-1]
        numbers = f"{first.layer}" if first is last else f"{first.layer}–{last.layer}"
        seen = [layer.num_experts_seen for layer in group]
        fewest, most = min(seen), max(seen)
        rows.append(
            (
                f"{format_stack(first.stack)}{numbers}",
                f"{len(group)}",
                f"{first.num_experts:,}",
                f"{first.top_k:,}",
                f"{first.num_tokens:,}",
                f"{fewest:,}" if fewest == most else f"{fewest:,}–{most:,}",
            )
        )
    if len(groups) > _LAYERS_SHOWN:
        rows.append((f"… {len(groups) - _LAYERS_SHOWN} more lines in JSON", "", "", "", "", ""))
    headers = ("layers", "number", "experts", "top-k", "tokens each", "experts in use")
    return make_table(headers, rows, right=(1, 2, 3, 4, 5))


def _shape(layer: ValidatedLayer) -> tuple[object, ...]:
    return layer.stack, layer.num_experts, layer.top_k, layer.num_tokens


def _make_answers(result: Validation) -> Table:
    rows = [
        (
            answer.question,
            f"moetool {answer.command}",
            style_words("yes", Style.GOOD)
            if answer.missing is None
            else style_words(f"no: {answer.missing}", Style.WARNING),
        )
        for answer in result.answers
    ]
    return make_table(("question", "command", "can be answered"), rows)


def _make_legend(result: Validation) -> list[str]:
    kinds = {check.result for check in result.checks}
    meanings = [
        words
        for kind, words in (
            ("failed", "failed: no analysis can be trusted"),
            ("noted", "noted: legal, but worth knowing"),
            ("skipped", "skipped: the trace lacks what the check needs"),
        )
        if kind in kinds
    ]
    if any(check.num_faults for check in result.checks):
        meanings.append("faults: rows, decisions, layers or prompts that fail the check")
    return [f"{'. '.join(meanings)}."] if meanings else []


def render_json(result: Validation, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object."""
    return envelope.render_json("moetool.validate/1", result.to_dict())


def render_csv(result: Validation, _: View = DEFAULT_VIEW) -> str:
    """Return one row per check."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Validation] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
