"""Show several models side by side, in blocks that fit a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table

from moetool.report.inspect.words import word_active, word_numbers
from moetool.report.renderer import View
from moetool.report.text.lines import make_notes
from moetool.report.text.page import FILE_WIDTH, Block
from moetool.report.text.styles import make_printable
from moetool.report.text.tables import make_table
from moetool.report.text.words import UNKNOWN, word_count, word_share, word_size

if TYPE_CHECKING:
    from moetool.inspection.result import Inspection

_GAP = 3
_SOURCES = {
    "skeleton": "skeleton",
    "headers": "headers",
    "skeleton and headers": "both",
    "reported": "reported",
    "modules": "modules",
}

# A model's name, and the words of its column by row label.
_Column = tuple[str, Mapping[str, str]]


def list_blocks(models: Sequence[Inspection], view: View) -> Iterator[Block]:
    """Yield models side by side, in blocks that fit a terminal, and their notes below."""
    columns = [
        (
            make_printable(model.model),
            {label: make_printable(word) for label, word in _describe(model)},
        )
        for model in models
    ]
    known = {label for _, column in columns for label, word in column.items() if word != UNKNOWN}
    labels = [label for label in columns[0][1] if label in known]
    for block in _cut_into_blocks(columns, labels, width=view.width or FILE_WIDTH):
        yield [_make_block(block, labels)]
    yield make_notes(f"{model.model}: {note}" for model in models for note in model.notes)


def _cut_into_blocks(
    columns: Sequence[_Column], labels: Sequence[str], *, width: int
) -> list[list[_Column]]:
    """Return the columns in blocks. A block of several fits a terminal without folding."""
    blocks: list[list[_Column]] = []
    taken = width
    for name, column in columns:
        added = _GAP + max(cell_len(word) for word in (name, *map(column.__getitem__, labels)))
        if taken + added > width:
            blocks.append([])
            taken = max(map(len, labels))
        blocks[-1].append((name, column))
        taken += added
    return blocks


def _make_block(columns: Sequence[_Column], labels: Sequence[str]) -> Table:
    return make_table(
        ("", *(name for name, _ in columns)),
        [(label, *(column[label] for _, column in columns)) for label in labels],
        right=range(1, len(columns) + 1),
    )


def _describe(model: Inspection) -> Iterator[tuple[str, str]]:
    """Yield row labels, the same for every model, and a model's words for each."""
    flops, published = model.flops, model.published
    yield "source", _SOURCES[model.source.value]
    yield from _describe_parameters(model)
    total_b = published.total_b if published else None
    active_b = published.active_b if published else None
    yield "vendor's total", UNKNOWN if total_b is None else f"{total_b}B"
    yield "vendor's active", UNKNOWN if active_b is None else f"{active_b}B"
    yield "layers", word_numbers(model.num_layers)
    yield "layers with experts", word_numbers(model.num_moe_layers)
    reported = model.reported.experts if model.reported else None
    yield "experts", reported or word_numbers(model.num_experts)
    yield "top-k", word_numbers(model.top_k)
    yield "shared experts", word_numbers(model.num_shared_experts)
    context = model.anatomy.context_length if model.anatomy else None
    yield "context", UNKNOWN if context is None else f"{context:,}"
    prefill, decode = (flops.prefill, flops.decode) if flops else (None, None)
    yield "prefill FLOPs per token", word_count(prefill)
    yield "decode FLOPs per token", word_count(decode)
    num_bytes = model.parameters.num_bytes if model.parameters else None
    yield "bytes, unquantized", word_size(num_bytes)


def _describe_parameters(model: Inspection) -> Iterator[tuple[str, str]]:
    parameters, reported = model.parameters, model.reported
    total = (reported.total if reported else None) or UNKNOWN
    if parameters and parameters.total is not None:
        total = word_count(parameters.total)
    yield "total", total
    active = (
        {name.value: word_active(number) for name, number in parameters.active.items()}
        if parameters
        else {"all": (reported.active if reported else None) or UNKNOWN}
    )
    yield "active, all", active["all"]
    for definition in ("without_input_embedding", "without_embedding_and_head"):
        yield f"  {definition.replace('_', ' ')}", active.get(definition, UNKNOWN)
    sparsity = parameters.sparsity if parameters else None
    yield "active / total", UNKNOWN if sparsity is None else word_share(sparsity)
    share = parameters.expert_share if parameters else None
    yield "routed experts / total", UNKNOWN if share is None else word_share(share)
