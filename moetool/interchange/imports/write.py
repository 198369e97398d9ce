"""Write what is imported: a trace or a load table, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moetool import __version__
from moetool.errors import InputError
from moetool.interchange.imports.collect import RowCollector
from moetool.interchange.imports.runs import LoadBlock, LoadImport, TraceImport
from moetool.interchange.imports.shapes import GivenShapes
from moetool.plain import Tabular, make_plain, show_fields
from moetool.printable import printable
from moetool.trace.loads.metadata import LoadLayer, LoadMetadata
from moetool.trace.loads.rows import LOAD_SCHEMA
from moetool.trace.loads.writing import write_loads
from moetool.trace.metadata import TraceMetadata
from moetool.trace.metadata_fields import LARGEST_ID
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.reader import open_trace
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.writer import TraceFile

_CELLS_PER_TABLE = 250_000


@dataclass(frozen=True)
class ImportResult(Tabular):
    """A finished import.

    Attributes:
        path: The file that was written.
        format: As `moetool import` names it.
        kind: `trace` or `load table`.
        columns: Columns of the rows.
        num_rows: Assignments of a trace; cells of a load table.
        num_bytes: Size of the file.
        num_prompts: Of a trace; None for a load table.
        num_tokens: Of a trace; None for a load table.
        num_assignments: Sum of the counts of a load table; None for a trace.
        num_steps: Of a load table whose rows are numbered by step; else None.
        num_layers: Routed layers with rows.
        num_experts: Of each layer, or all different numbers; None if unknown.
        top_k: Of each layer, or all different numbers; None if unknown.
        notes: What a reader should know: what the format lacks, and what was left out.
    """

    path: Path
    format: str
    kind: str
    columns: tuple[str, ...]
    num_rows: int
    num_bytes: int
    num_layers: int
    num_prompts: int | None
    num_tokens: int | None
    num_experts: tuple[int, ...] | None
    top_k: tuple[int, ...] | None
    notes: tuple[str, ...]
    num_assignments: int | None = None
    num_steps: int | None = None

    __repr__ = show_fields

    @property
    def missing_columns(self) -> tuple[str, ...]:
        """Columns that a trace of moetool has and this one lacks."""
        if self.kind != "trace":
            return ()
        return tuple(name for name in TRACE_SCHEMA.names if name not in self.columns)

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the one row; unlike sizes of layers are None there."""
        return {
            "path": str,
            "format": str,
            "kind": str,
            "num_rows": int,
            "num_bytes": int,
            "num_layers": int,
            "num_prompts": int | None,
            "num_tokens": int | None,
            "num_experts": int | None,
            "top_k": int | None,
            "num_assignments": int | None,
            "num_steps": int | None,
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row."""
        row = {name: getattr(self, name) for name in self.column_types()}
        for name in ("num_experts", "top_k"):
            row[name] = row[name][0] if row[name] is not None and len(row[name]) == 1 else None
        return [{**row, "path": str(self.path)}]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        plain: dict[str, Any] = make_plain({**vars(self), "path": str(self.path)})
        return plain


def write_trace(
    opened: TraceImport, shapes: GivenShapes, target: Path, *, overwrite: bool
) -> ImportResult:
    """Write a trace.

    Raises:
        InputError: A file can't be read, holds no decisions, or contradicts what the user says.
        UsageError: The target can't be written.
    """
    facts = opened.facts
    collector = RowCollector(opened, shapes)
    metadata = TraceMetadata(
        moetool=__version__,
        imported_from=facts.format,
        model=shapes.model or facts.model,
        model_type=shapes.model_type,
        rank_order="rank" in opened.columns and facts.has_weight_order,
        **vars(shapes.model_counts),
    )
    with TraceFile(
        target,
        metadata=metadata,
        replace_existing=overwrite,
        schema=collector.schema,
        keeps_parts=False,
    ) as sink:
        for table in collector.iter_tables():
            sink.write(table)
        if not collector.num_rows:
            raise InputError(
                "The files hold no decisions.", hint="Record again, while the model answers."
            )
        sink.flush()
        _check_rows(sink.partial)
        layers = collector.describe_layers()
        if not layers:
            facts.note(
                "The number of experts is not in the files: --num-experts or --model states it."
            )
        metadata = replace(
            metadata,
            complete=facts.is_complete,
            exact=facts.is_exact,
            layers=layers,
            num_prompts=collector.num_prompts,
            num_tokens=collector.num_tokens,
            num_decisions=collector.num_decisions,
            notes=(
                f"Recorded in {facts.format}."
                if facts.of_run
                else f"Imported from {facts.format}.",
                *facts.notes,
                *shapes.notes,
                *shapes.notes_on_counts,
            ),
            **facts.of_run,
        )
        sink.finish(metadata)
    return ImportResult(
        path=target,
        format=facts.format,
        kind="trace",
        columns=tuple(collector.schema.names),
        num_rows=collector.num_rows,
        num_bytes=target.stat().st_size,
        num_layers=collector.num_layers,
        num_prompts=collector.num_prompts,
        num_tokens=collector.num_tokens,
        num_experts=_distinct(layer.num_experts for layer in layers),
        top_k=_distinct(collector.widths),
        notes=(*facts.notes, *shapes.notes),
    )


def _check_rows(folder: Path) -> None:
    """Check rows as every reader of the finished trace will.

    Args:
        folder: The parts.

    Raises:
        InputError: They are not those of a trace: a file holds a token twice, for example.
    """
    source = open_trace(folder)
    try:
        for _ in DecisionScan(source).iter_tables(
            [name for name in source.columns if name in TRACE_SCHEMA.names]
        ):
            pass
    except InputError as error:
        message = error.message
        for part in source.files:
            message = message.replace(f"'{printable(part)}'", "What was imported")
        raise InputError(
            message.replace(f"'{printable(folder)}'", "What was imported"),
            hint="Record again, and import files of one recording.",
            facts=error.facts,
        ) from error


def write_load_table(
    opened: LoadImport, shapes: GivenShapes, target: Path, *, overwrite: bool
) -> ImportResult:
    """Write a load table.

    Raises:
        InputError: A file can't be read, or contradicts what the user says.
        UsageError: The target can't be written.
    """
    facts = opened.facts
    names = ("layer", "expert", "count", *(("step",) if opened.has_steps else ()))
    columns = tuple(name for name in LOAD_SCHEMA.names if name in names)
    sizes: dict[tuple[str, int], int] = {}
    steps: set[int] = set()
    num_assignments = 0
    top_k: dict[tuple[str, int], int | None] = {}

    def describe() -> LoadMetadata:
        if not sizes:
            raise InputError(
                "The files hold no counts.", hint="Record again, while the model answers."
            )
        top_k.update({place: shapes.state_top_k(facts, place[1]) for place in sizes})
        if None in top_k.values():
            facts.note("The number of experts per token is unknown: --top-k or --model states it.")
        return LoadMetadata(
            moetool=__version__,
            format=facts.format,
            model=shapes.model or facts.model,
            precision=facts.precision,
            layers=tuple(
                LoadLayer(stack, layer, num_experts=size, top_k=top_k[stack, layer])
                for (stack, layer), size in sorted(sizes.items())
            ),
            notes=(*facts.notes, *shapes.notes),
        )

    def count(blocks: Iterable[LoadBlock]) -> Iterator[LoadBlock]:
        nonlocal num_assignments
        for block in blocks:
            steps.add(block.step)
            num_assignments += int(block.counts.sum())
            yield block

    num_rows = write_loads(
        _make_tables(count(_check_blocks(opened, shapes, sizes)), columns),
        target,
        describe=describe,
        columns=columns,
        replace_existing=overwrite,
    )
    return ImportResult(
        path=target,
        format=facts.format,
        kind="load table",
        columns=columns,
        num_rows=num_rows,
        num_bytes=target.stat().st_size,
        num_layers=len(sizes),
        num_prompts=None,
        num_tokens=None,
        num_experts=_distinct(sizes.values()),
        top_k=_distinct(k for k in top_k.values() if k is not None),
        notes=(*facts.notes, *shapes.notes),
        num_assignments=num_assignments,
        num_steps=len(steps) if opened.has_steps else None,
    )


def _check_blocks(
    opened: LoadImport, shapes: GivenShapes, sizes: dict[tuple[str, int], int]
) -> Iterator[LoadBlock]:
    """Yield the counts of each layer, after checking them against what the user says.

    Args:
        opened: The import.
        shapes: What the user says.
        sizes: Receives the number of experts of each layer.
    """
    for block in opened.blocks:
        shapes.check_routed(block.layer)
        if block.layer > LARGEST_ID or len(block.counts) > LARGEST_ID + 1:
            raise InputError(
                f"The files number a layer {block.layer} with {len(block.counts)} experts.",
                hint="Record again: the files are damaged.",
            )
        known = shapes.find_num_experts(opened.facts, block.layer)
        size = known or sizes.get((block.stack, block.layer), len(block.counts))
        if len(block.counts) != size:
            raise InputError(
                f"The files count {len(block.counts)} experts in layer {block.layer}, which has "
                f"{size}.",
                hint="Name the model that was recorded, or correct --num-experts.",
            )
        sizes[block.stack, block.layer] = size
        yield block


def _make_tables(blocks: Iterable[LoadBlock], columns: tuple[str, ...]) -> Iterator[pa.Table]:
    waiting: list[LoadBlock] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(each.counts) for each in waiting) >= _CELLS_PER_TABLE:
            yield _make_table(waiting, columns)
            waiting = []
    if waiting:
        yield _make_table(waiting, columns)


def _make_table(blocks: list[LoadBlock], columns: tuple[str, ...]) -> pa.Table:
    widths = np.array([len(block.counts) for block in blocks])
    values = {
        "step": np.repeat(np.array([block.step for block in blocks], dtype=np.int64), widths),
        "layer": np.repeat(np.array([block.layer for block in blocks], dtype=np.int16), widths),
        "expert": np.concatenate([np.arange(width, dtype=np.int16) for width in widths]),
        "count": np.concatenate([block.counts for block in blocks]),
    }
    return pa.table({name: values[name] for name in columns})


def _distinct(numbers: Iterable[int]) -> tuple[int, ...] | None:
    return tuple(sorted(set(numbers))) or None
