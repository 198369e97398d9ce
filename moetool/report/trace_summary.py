"""Summarize a run of route-trace for the person who started it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from moetool.analysis.balance.load import LayerLoad
from moetool.analysis.routing_summary import RoutingSummary
from moetool.analysis.specialization.lift import DomainExpert
from moetool.printable import printable
from moetool.report.renderer import DEFAULT_VIEW, View
from moetool.report.text.heat_map import AROUND_ONE, HeatMap, MapLayer, suits_map
from moetool.report.text.lines import make_notes, make_paragraphs, make_whole_lines
from moetool.report.text.numbers import format_place, format_stack
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style, Words, join_parts, style_words
from moetool.report.text.tables import make_table
from moetool.report.trace_excerpt import make_excerpts
from moetool.trace.excerpt import PromptExcerpt
from moetool.trace.facts import describe_choices
from moetool.trace.metadata import NOT_EXACT, TraceMetadata
from moetool.wording import format_bytes, number_of

if TYPE_CHECKING:
    from moetool.tracing.timing import RunTimings

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
    excerpts: Sequence[PromptExcerpt] = (),
    view: View = DEFAULT_VIEW,
) -> str:
    """Return what was traced, how even the load is, what each domain prefers, and where it went.

    Before that stand the prompts that are shown, with what the model wrote.

    Args:
        metadata: What was traced.
        routing: A summary of the same trace.
        num_rows: Rows of the trace.
        elapsed_s: Wall time of the whole run.
        wrote: The file that holds the rows, if they went to one.
        wrote_bytes: The size of that file.
        streamed: The rows went to stdout. With neither file nor stream they were not kept.
        texts: The file of generated texts, if there is one.
        excerpts: The prompts to show.
        view: The terminal that the summary is for.
    """
    written = []
    rows = number_of(num_rows, "row")
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
        *make_excerpts(excerpts, metadata.layers, view),
        make_paragraphs([*_describe_size(metadata, num_rows), *_describe_load(routing)]),
        _map_load(routing, view),
        list(_describe_domains(routing)) if metadata.num_prompts > 1 else [],
        make_notes(_explain(routing)),
        make_whole_lines(written),
    )
    return render_page(blocks, view)


def render_timings(timings: RunTimings) -> str:
    """Return one line that says where the time of a run went."""
    shares = timings.shares
    stages = ", ".join(
        f"{name} {seconds:.1f} s ({shares.get(name, 0):.0%})"
        for name, seconds in timings.stages_s.items()
    )
    speed = timings.forward_tokens_per_s
    passes = "" if speed is None else f"; forward passes at {speed:,.0f} tokens/s"
    return f"time: {stages}{passes}\n"


def _describe_quantization(metadata: TraceMetadata) -> Iterator[Words]:
    experts, linears = metadata.quantized_expert_bytes, metadata.quantized_linear_bytes
    plain = metadata.unquantized_bytes
    if experts is None or linears is None or plain is None:
        return
    quantized = f"linear layers {format_bytes(linears)}"
    if experts:
        quantized = f"experts {format_bytes(experts)}, {quantized}"
    yield (
        f"quantized while loading ({printable(metadata.quantization)}): {quantized}; everything "
        f"else {format_bytes(plain)} in {printable(metadata.dtype)}"
    )


def _describe_size(metadata: TraceMetadata, num_rows: int) -> Iterator[Words]:
    yield style_words(
        f"{printable(metadata.model)}: {number_of(metadata.num_prompts, 'prompt')}, "
        f"{number_of(metadata.num_tokens, 'token')}",
        Style.STRONG,
    )
    yield (
        f"{number_of(len(metadata.layers), 'routed layer')}, {describe_choices(metadata.layers)}: "
        f"{number_of(metadata.num_decisions, 'decision')}, "
        f"{number_of(num_rows, 'assignment')}"
    )
    yield from _describe_quantization(metadata)
    if metadata.max_new_tokens:
        yield (
            f"{number_of(metadata.num_new_tokens, 'token')} written, at most "
            f"{metadata.max_new_tokens:,} per prompt"
        )
    if metadata.num_cut_prompts:
        yield style_words(
            f"{number_of(metadata.num_cut_prompts, 'prompt')} "
            f"{_was(metadata.num_cut_prompts)} cut after "
            f"{number_of(metadata.max_prompt_tokens or 0, 'token')}",
            Style.WARNING,
        )
    if not metadata.exact:
        for note in metadata.notes:
            if note.startswith(NOT_EXACT):
                yield style_words(note, Style.WARNING)


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _describe_load(routing: RoutingSummary) -> Iterator[Words]:
    least, most = routing.least_even, routing.most_even
    if least is None or most is None:
        yield style_words("no expert ran in any layer", Style.WARNING)
        return
    yield join_parts(
        [
            "load evenness",
            style_words(f"{least.entropy:.3f}", Style.STRONG),
            f"({_name_layer(least)}) to",
            style_words(f"{most.entropy:.3f}", Style.STRONG),
            f"({_name_layer(most)}); 1 is even,",
        ]
    )
    yield f"random routing of the same tokens would give {least.random_entropy:.3f}"
    if routing.num_idle_experts:
        idle = number_of(routing.num_idle_experts, "expert")
        yield style_words(f"{idle} {_was(routing.num_idle_experts)} never chosen", Style.WARNING)


def _map_load(routing: RoutingSummary, view: View) -> list[RenderableType]:
    layers = [
        MapLayer(load.stack, load.layer, load.over_mean)
        for load in routing.layers
        if load.over_mean is not None
    ]
    if not layers or not suits_map(view):
        return []
    title = "load of each expert over the mean of its layer; 1× is even"
    return [HeatMap(title, layers, AROUND_ONE, by="mean")]


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
        yield from make_paragraphs([f"… and {number_of(num_more, 'more domain')}"])


def _explain(routing: RoutingSummary) -> Iterator[str]:
    """Yield the meaning of the terms that the summary uses."""
    if routing.least_even is not None:
        yield "load evenness: entropy of the experts' load, over that of an even load."
    lifted = next((cells[0] for cells in routing.most_lifted.values() if cells), None)
    if lifted is not None:
        place = format_place(lifted.stack, lifted.layer, lifted.expert)
        yield (
            f"{place} ×{lifted.lift:.1f}: expert {lifted.expert} of {format_stack(lifted.stack)}"
            f"layer {lifted.layer}; its share of the domain's tokens is {lifted.lift:.1f} times "
            "its share of all tokens."
        )


def _format_lift(cell: DomainExpert) -> str:
    low, high = (
        "unknown" if limit is None else f"{limit:.1f}" for limit in (cell.lift_low, cell.lift_high)
    )
    return f"×{cell.lift:.1f} ({low}–{high})"
