"""The summary after a run of route-trace, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moetool.analysis.lift import DomainExpert, find_most_lifted
from moetool.analysis.load import LayerLoad
from moetool.report.numbers import format_file_size, format_number_of, format_place
from moetool.report.tables import render_table
from moetool.trace.metadata import NOT_EXACT, TraceMetadata

_EXPERTS_SHOWN = 4
_DOMAINS_SHOWN = 30


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
        *([f"wrote {texts}"] if texts else []),
        f"took {elapsed_s:.1f} s, loading included",
    ]
    print("\n".join(lines), file=sys.stderr)  # noqa: T201


def _describe_size(metadata: TraceMetadata, num_rows: int) -> list[str]:
    shapes = sorted({(layer.top_k, layer.num_experts) for layer in metadata.layers})
    routing = ", ".join(f"top-{top_k} of {num_experts} experts" for top_k, num_experts in shapes)
    lines = [
        f"{metadata.model}: {format_number_of(metadata.num_prompts, 'prompt')}, "
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
        lines += [note for note in metadata.notes if note.startswith(NOT_EXACT)]
    return lines


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _describe_load(loads: Sequence[LayerLoad]) -> list[str]:
    least = min(loads, key=lambda load: load.entropy)
    most = max(loads, key=lambda load: load.entropy)
    idle = sum(load.num_idle_experts for load in loads)
    lines = [
        f"load evenness {least.entropy:.3f} ({_name_layer(least)}) to {most.entropy:.3f} "
        f"({_name_layer(most)}); 1 is even,",
        f"random routing of as many tokens would give {least.random_entropy:.3f}",
    ]
    if idle:
        lines.append(f"{format_number_of(idle, 'expert')} {_was(idle)} never chosen")
    return lines


def _name_layer(load: LayerLoad) -> str:
    return f"{'' if load.stack == 'decoder' else load.stack + ' '}layer {load.layer}"


def _describe_domains(lifts: Sequence[DomainExpert]) -> list[str]:
    ranked = find_most_lifted(lifts, limit=_EXPERTS_SHOWN)
    rows = [
        (
            domain,
            f"{cells[0].tokens:,}",
            "  ".join(
                f"{format_place(cell.stack, cell.layer, cell.expert)} ×{cell.lift:.2f}"
                for cell in cells
            ),
        )
        for domain, cells in list(ranked.items())[:_DOMAINS_SHOWN]
    ]
    if len(ranked) == 1:
        return ["one domain: no expert can be over-represented (label prompts with a domain)"]
    table = render_table(("domain", "tokens", "most over-represented experts"), rows, right=(1,))
    lines = table.splitlines()
    if len(ranked) > _DOMAINS_SHOWN:
        lines.append(f"… and {format_number_of(len(ranked) - _DOMAINS_SHOWN, 'more domain')}")
    return lines


def _describe_output(output: Path | None, *, num_rows: int) -> str:
    if output is not None and str(output) != "-":
        return f"wrote {output} ({format_number_of(num_rows, 'row')}, {format_file_size(output)})"
    return f"wrote {format_number_of(num_rows, 'row')} to stdout"
