"""The summary after a run of route-trace, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moetool.analysis.lift import DomainExpert, find_most_lifted
from moetool.analysis.load import LayerLoad
from moetool.printable import printable
from moetool.report.text.numbers import (
    format_file_size,
    format_number_of,
    format_place,
    format_stack,
)
from moetool.report.text.tables import render_table
from moetool.trace.metadata import NOT_EXACT, TraceMetadata

_EXPERTS_SHOWN = 2
_DOMAINS_SHOWN = 30
_LONGEST_LINE = 1_000


def print_routing_summary(
    metadata: TraceMetadata,
    *,
    loads: Sequence[LayerLoad],
    lifts: Sequence[DomainExpert],
    num_rows: int,
    output: Path | None,
    elapsed_s: float,
    keeps_rows: bool = True,
    texts: Path | None = None,
) -> None:
    """Print what was traced, how even the load is, and what each domain prefers.

    Rows went to the output, or to stdout where it is None or `-`, unless none were kept.
    """
    lines = [
        *_describe_size(metadata, num_rows),
        *_describe_load(loads),
        "",
        *_describe_domains(lifts),
        "",
        _describe_output(output, num_rows=num_rows)
        if keeps_rows
        else "no rows were written: add -o trace.parquet to keep them",
        *([f"wrote {printable(texts)}"] if texts else []),
        f"took {elapsed_s:.1f} s, loading included",
    ]
    shown = [printable(line, max_length=_LONGEST_LINE) for line in lines]
    print("\n".join(shown), file=sys.stderr)  # noqa: T201


def _describe_size(metadata: TraceMetadata, num_rows: int) -> list[str]:
    shapes = sorted({(layer.top_k, layer.num_experts) for layer in metadata.layers})
    routing = ", ".join(f"top-{top_k} of {num_experts} experts" for top_k, num_experts in shapes)
    lines = [
        f"{printable(metadata.model)}: {format_number_of(metadata.num_prompts, 'prompt')}, "
        f"{format_number_of(metadata.num_tokens, 'token')}",
        f"{format_number_of(len(metadata.layers), 'routed layer')}, {routing}: "
        f"{format_number_of(metadata.num_decisions, 'decision')}, "
        f"{format_number_of(num_rows, 'assignment')}",
    ]
    if metadata.max_new_tokens:
        lines.append(
            f"{format_number_of(metadata.num_new_tokens, 'token')} written, at most {metadata.max_new_tokens:,} a prompt"
        )
    if metadata.num_cut_prompts:
        lines.append(
            f"{format_number_of(metadata.num_cut_prompts, 'prompt')} {_was(metadata.num_cut_prompts)} cut "
            f"after {format_number_of(metadata.max_prompt_tokens or 0, 'token')}"
        )
    if not metadata.exact:
        lines += [
            printable(note, max_length=1000)
            for note in metadata.notes
            if note.startswith(NOT_EXACT)
        ]
    return lines


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _describe_load(loads: Sequence[LayerLoad]) -> list[str]:
    known = [(load.entropy, load) for load in loads if load.entropy is not None]
    if not known:
        return ["no expert ran in any layer"]
    (lowest, least), (highest, most) = (
        pick(known, key=lambda item: item[0]) for pick in (min, max)
    )
    idle = sum(load.num_idle_experts for load in loads)
    lines = [
        f"load evenness {lowest:.3f} ({_name_layer(least)}) to {highest:.3f} "
        f"({_name_layer(most)}); 1 is even,",
        f"random routing of as many tokens would give {least.random_entropy:.3f}",
    ]
    if idle:
        lines.append(f"{format_number_of(idle, 'expert')} {_was(idle)} never chosen")
    return lines


def _name_layer(load: LayerLoad) -> str:
    return f"{format_stack(load.stack)}layer {load.layer}"


def _describe_domains(lifts: Sequence[DomainExpert]) -> list[str]:
    tokens = {cell.domain: cell.tokens for cell in reversed(lifts)}
    if len(tokens) == 1:
        return ["one domain: no expert can be over-represented (label prompts with a domain)"]
    ranked = find_most_lifted(lifts, limit=_EXPERTS_SHOWN)
    rows = [
        (
            printable(domain, max_length=60),
            f"{tokens[domain]:,}",
            "  ".join(
                f"{format_place(cell.stack, cell.layer, cell.expert)} {_format_lift(cell)}"
                for cell in cells
            )
            or "none with certainty",
        )
        for domain, cells in list(ranked.items())[:_DOMAINS_SHOWN]
    ]
    headers = ("domain", "tokens", "over-represented experts: lift (95% interval)")
    lines = render_table(headers, rows, right=(1,)).splitlines()
    if len(ranked) > _DOMAINS_SHOWN:
        lines.append(f"… and {format_number_of(len(ranked) - _DOMAINS_SHOWN, 'more domain')}")
    return lines


def _format_lift(cell: DomainExpert) -> str:
    low, high = (
        "unknown" if limit is None else f"{limit:.1f}" for limit in (cell.lift_low, cell.lift_high)
    )
    return f"×{cell.lift:.1f} ({low}–{high})"


def _describe_output(output: Path | None, *, num_rows: int) -> str:
    if output is not None and str(output) != "-":
        size = f"{format_number_of(num_rows, 'row')}, {format_file_size(output)}"
        return f"wrote {printable(output)} ({size})"
    return f"wrote {format_number_of(num_rows, 'row')} to stdout"
