"""Summarize a run of route-trace for the person who started it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType

from moetool.analysis.lift import DomainExpert
from moetool.analysis.load import LayerLoad
from moetool.analysis.routing_summary import RoutingSummary
from moetool.printable import printable
from moetool.report.renderer import DEFAULT_VIEW, View
from moetool.report.text.lines import make_paragraphs, make_whole_lines
from moetool.report.text.numbers import (
    format_bytes,
    format_number_of,
    format_place,
    format_stack,
)
from moetool.report.text.page import render_page
from moetool.report.text.tables import make_table
from moetool.trace.metadata import NOT_EXACT, TraceMetadata

_EXPERTS_SHOWN = 2
_DOMAINS_SHOWN = 30


def render_trace_summary(
    metadata: TraceMetadata,
    routing: RoutingSummary,
    *,
    num_rows: int,
    elapsed_s: float,
    wrote: Path | None = None,
    wrote_bytes: int = 0,
    streamed: bool = False,
    texts: Path | None = None,
    view: View = DEFAULT_VIEW,
) -> str:
    """Return what was traced, how even the load is, what each domain prefers, and where it went.

    Args:
        metadata: What was traced.
        routing: A summary of the same trace.
        num_rows: Rows of the trace.
        elapsed_s: Wall time of the whole run.
        wrote: The file that holds the rows, if they went to one.
        wrote_bytes: The size of that file.
        streamed: The rows went to stdout. With neither file nor stream they were not kept.
        texts: The file of generated texts, if there is one.
        view: The terminal that the summary is for.
    """
    written = []
    rows = format_number_of(num_rows, "row")
    if wrote is not None:
        written.append(f"wrote {printable(wrote)} ({rows}, {format_bytes(wrote_bytes)})")
    elif streamed:
        written.append(f"wrote {rows} to stdout")
    else:
        written.append("no rows were written: add -o trace.parquet to keep them")
    if texts is not None:
        written.append(f"wrote {printable(texts)}")
    written.append(f"took {elapsed_s:.1f} s, loading included")
    blocks = (
        make_paragraphs([*_describe_size(metadata, num_rows), *_describe_load(routing)]),
        list(_describe_domains(routing)),
        make_whole_lines(written),
    )
    return render_page(blocks, view)


def _describe_size(metadata: TraceMetadata, num_rows: int) -> Iterator[str]:
    shapes = sorted({(layer.top_k, layer.num_experts) for layer in metadata.layers})
    routing = ", ".join(f"top-{top_k} of {num_experts} experts" for top_k, num_experts in shapes)
    yield (
        f"{printable(metadata.model)}: {format_number_of(metadata.num_prompts, 'prompt')}, "
        f"{format_number_of(metadata.num_tokens, 'token')}"
    )
    yield (
        f"{format_number_of(len(metadata.layers), 'routed layer')}, {routing}: "
        f"{format_number_of(metadata.num_decisions, 'decision')}, "
        f"{format_number_of(num_rows, 'assignment')}"
    )
    if metadata.max_new_tokens:
        yield (
            f"{format_number_of(metadata.num_new_tokens, 'token')} written, at most "
            f"{metadata.max_new_tokens:,} a prompt"
        )
    if metadata.num_cut_prompts:
        yield (
            f"{format_number_of(metadata.num_cut_prompts, 'prompt')} "
            f"{_was(metadata.num_cut_prompts)} cut after "
            f"{format_number_of(metadata.max_prompt_tokens or 0, 'token')}"
        )
    if not metadata.exact:
        yield from (note for note in metadata.notes if note.startswith(NOT_EXACT))


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _describe_load(routing: RoutingSummary) -> Iterator[str]:
    least, most = routing.least_even, routing.most_even
    if least is None or most is None:
        yield "no expert ran in any layer"
        return
    yield (
        f"load evenness {least.entropy:.3f} ({_name_layer(least)}) to {most.entropy:.3f} "
        f"({_name_layer(most)}); 1 is even,"
    )
    yield f"random routing of the same tokens would give {least.random_entropy:.3f}"
    if routing.num_idle_experts:
        idle = format_number_of(routing.num_idle_experts, "expert")
        yield f"{idle} {_was(routing.num_idle_experts)} never chosen"


def _name_layer(load: LayerLoad) -> str:
    return f"{format_stack(load.stack)}layer {load.layer}"


def _describe_domains(routing: RoutingSummary) -> Iterator[RenderableType]:
    if len(routing.domain_tokens) == 1:
        yield from make_paragraphs(
            ["one domain: no expert can be over-represented (label prompts with a domain)"]
        )
        return
    rows = [
        (
            printable(domain, max_length=60),
            f"{routing.domain_tokens[domain]:,}",
            "  ".join(
                f"{format_place(cell.stack, cell.layer, cell.expert)} {_format_lift(cell)}"
                for cell in cells[:_EXPERTS_SHOWN]
            )
            or "none for certain",
        )
        for domain, cells in list(routing.most_lifted.items())[:_DOMAINS_SHOWN]
    ]
    headers = ("domain", "tokens", "over-represented experts: lift (95% interval)")
    yield make_table(headers, rows, right=(1,))
    num_more = len(routing.most_lifted) - _DOMAINS_SHOWN
    if num_more > 0:
        yield from make_paragraphs([f"… and {format_number_of(num_more, 'more domain')}"])


def _format_lift(cell: DomainExpert) -> str:
    low, high = (
        "unknown" if limit is None else f"{limit:.1f}" for limit in (cell.lift_low, cell.lift_high)
    )
    return f"×{cell.lift:.1f} ({low}–{high})"
