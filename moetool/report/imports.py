"""Show what was imported, and what foreign files are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import (
    make_fact,
    make_notes,
    make_paragraphs,
    make_whole_lines,
)
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.trace.metadata import NOT_EXACT
from moetool.wording import format_bytes, join_words, number_of

if TYPE_CHECKING:
    from moetool.interchange.imports.detect import Detection
    from moetool.interchange.imports.write import ImportResult


def render_result_text(result: ImportResult, view: View = DEFAULT_VIEW) -> str:
    """Return what was imported, its columns, what the format lacks, and where it went."""
    name = printable(result.path)
    inexact = [note for note in result.notes if note.startswith(NOT_EXACT)]
    return render_page(
        (
            make_paragraphs([*_describe_size(result), *_warn(inexact)]),
            [
                make_fact("columns", ", ".join(result.columns)),
                *(
                    [make_fact("lacking", ", ".join(result.missing_columns))]
                    if result.missing_columns
                    else []
                ),
            ],
            make_notes(note for note in result.notes if note not in inexact),
            make_whole_lines(
                [
                    f"wrote {name} ({number_of(result.num_rows, 'row')}, "
                    f"{format_bytes(result.num_bytes)})",
                    f"next: moetool {'validate' if result.kind == 'trace' else 'balance'} {name}",
                ]
            ),
        ),
        view,
    )


def _describe_size(result: ImportResult) -> Iterator[Words]:
    article = "a trace" if result.kind == "trace" else "a load table, which has no tokens,"
    # The only engine that moetool runs itself.
    how = "Recorded in" if result.format == "llama.cpp" else f"Imported {article} from"
    yield style_words(f"{how} {result.format}", Style.STRONG)
    sizes = [number_of(result.num_layers, "routed layer")]
    if result.num_prompts is not None and result.num_tokens is not None:
        sizes = [
            number_of(result.num_prompts, "prompt"),
            number_of(result.num_tokens, "token"),
            *sizes,
        ]
    if result.num_steps is not None:
        sizes.append(number_of(result.num_steps, "step"))
    if result.num_assignments is not None:
        sizes.append(number_of(result.num_assignments, "assignment"))
    yield f"{', '.join(sizes)}; {_describe_shape(result)}"


def _describe_shape(result: ImportResult) -> str:
    """Return top-k and the number of experts in words, as far as they are known."""
    experts = result.num_experts and f"{_join(result.num_experts)} experts"
    if result.top_k is None:
        unknown = "the number of experts and top-k are unknown"
        return f"{experts}, of which a token gets an unknown number" if experts else unknown
    top_k = _join([f"top-{number}" for number in result.top_k])
    return f"{top_k} of {experts or 'an unknown number of experts'}"


def _join(values: Sequence[object]) -> str:
    return join_words([str(value) for value in values], last="or")


def _warn(notes: Sequence[str]) -> Iterator[Words]:
    for note in notes:
        yield style_words(note, Style.WARNING)


def render_result_json(result: ImportResult, view: View = DEFAULT_VIEW) -> str:
    """Return the result as one JSON object."""
    del view
    return envelope.render_json("moetool.import/1", result.to_dict())


def render_result_csv(result: ImportResult, view: View = DEFAULT_VIEW) -> str:
    """Return the result as one row."""
    del view
    return envelope.render_rows([result])


RESULT_RENDERERS: Renderers[ImportResult] = {
    ReportFormat.TABLE: render_result_text,
    ReportFormat.JSON: render_result_json,
    ReportFormat.CSV: render_result_csv,
}


def render_detections_text(found: Sequence[Detection], view: View = DEFAULT_VIEW) -> str:
    """Return what each file is, what it holds, and the command that imports it."""
    blocks: list[Block] = []
    for each in found:
        known = each.kind is not None
        title = style_words(
            f"{printable(each.path)}: {printable(each.title, max_length=400)}",
            Style.STRONG if known else Style.WARNING,
        )
        block: list[object] = [*make_paragraphs([title])]
        for label, words in (
            ("format", each.format),
            ("becomes", each.kind and f"a {each.kind}" if each.format else None),
            ("has", each.gives),
            ("lacks", each.lacks),
        ):
            if words:
                block.append(make_fact(label, words))
        if each.command:
            block += make_whole_lines([each.command])
        blocks.append(block)  # type: ignore[arg-type]
    return render_page(blocks, view)


def render_detections_json(found: Sequence[Detection], view: View = DEFAULT_VIEW) -> str:
    """Return what the files are as one JSON object."""
    del view
    return envelope.render_json(
        "moetool.import-detect/1", {"files": [each.to_dict() for each in found]}
    )


def render_detections_csv(found: Sequence[Detection], view: View = DEFAULT_VIEW) -> str:
    """Return a row for each file."""
    del view
    return envelope.render_rows(found)


DETECTION_RENDERERS: Renderers[Sequence[Detection]] = {
    ReportFormat.TABLE: render_detections_text,
    ReportFormat.JSON: render_detections_json,
    ReportFormat.CSV: render_detections_csv,
}
