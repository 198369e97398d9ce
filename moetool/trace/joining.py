"""Joining of traces of one model into one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from moetool import __version__
from moetool.errors import InputError, UsageError
from moetool.plain import show_fields
from moetool.printable import printable
from moetool.trace.companions import find_companions, sidecar_path
from moetool.trace.metadata import NOT_EXACT, TraceMetadata
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import find_shapes
from moetool.trace.reading.merging import Part, describe_parts, keep_common, merge_metadata
from moetool.trace.reading.reader import TraceSource
from moetool.trace.scanning.columns import take_words
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.writer import TraceFile
from moetool.wording import number_of

_MODELS_HINT = "Merge traces of one model; `moetool compare` compares two."
_IDS_HINT = (
    "Add --prefix-prompts (prefix_prompts=True in Python) to put each trace's name before its ids."
)
_REPAIR_HINT = "Repair the trace; `moetool validate` lists all its faults."
_COLUMNS_SHOWN = 8


@dataclass(frozen=True)
class MergedTrace:
    """A merged trace.

    Attributes:
        path: The file that was written.
        num_traces: Traces that were given.
        notes: What a reader should know: what differs between them, and what was left out.
    """

    path: Path
    num_traces: int
    num_files: int
    num_rows: int
    num_prompts: int
    notes: tuple[str, ...]

    __repr__ = show_fields


@dataclass(frozen=True)
class _JoinedSource(TraceSource):
    """Several traces as one.

    Attributes:
        prefixes: What stands before the prompt ids of each file; none if empty.
    """

    prefixes: Mapping[Path, str] = field(default_factory=dict)

    def iter_file_tables(self, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield the tables of all files, with the new prompt ids."""
        for path, table in super().iter_file_tables(columns):
            if path in self.prefixes and "prompt_id" in columns and table.num_rows:
                prompt = take_words(table, "prompt_id")
                words = [f"{self.prefixes[path]}{word}" for word in prompt.dictionary.to_pylist()]
                codes = np.zeros(table.num_rows, np.int32) if prompt.codes is None else prompt.codes
                column = pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string()))
                table = table.set_column(columns.index("prompt_id"), "prompt_id", column)
            yield path, table


def merge_sources(
    sources: Sequence[TraceSource],
    target: Path,
    *,
    prefix_prompts: bool = False,
    replace_existing: bool = False,
    show: Callable[[str], None] = lambda _: None,
) -> MergedTrace:
    """Write the rows of several traces of one model into one file, checking each row.

    The rows of each trace follow those of the one before. The file appears only when it is whole.

    Args:
        sources: The traces, each a file or a folder.
        target: A `.parquet` or `.csv` file.
        prefix_prompts: Put the name of each trace before its prompt ids, as in `code/17`.
        replace_existing: Replace an existing file.
        show: Receives the step at work.

    Raises:
        InputError: The traces are of different models, have different columns or prompts of one
            id, or a row is not one of a trace.
        UsageError: A trace is given twice, or the target can't be written.
    """
    _refuse_repeated(sources)
    columns = _take_columns(sources)
    metadata = _merge_metadata(sources)
    if not prefix_prompts:
        show("comparing prompts")
        _refuse_common_prompts(sources)
    joined = _JoinedSource(
        path=target,
        files=tuple(file for source in sources for file in source.files),
        columns=columns,
        metadata=metadata,
        prefixes=_name_prefixes(sources) if prefix_prompts else {},
    )
    scan = DecisionScan(joined)
    num_rows = 0
    with TraceFile(
        target,
        metadata=metadata,
        replace_existing=replace_existing,
        schema=pa.schema([TRACE_SCHEMA.field(name) for name in columns]),
        keeps_parts=False,
    ) as sink:
        with _adapting_errors(target):
            for table in scan.iter_tables(columns):
                sink.write(table.select(columns))
                num_rows += table.num_rows
                assert scan.file is not None
                show(f"merging {scan.file.name}, {number_of(num_rows, 'row')}")
            if not num_rows:
                raise InputError("The traces hold no rows.", hint="Trace at least one prompt.")
            find_shapes(joined, scan.layers, num_experts=None, top_k=None)
        show(f"writing {target}")
        sink.finish(metadata)
    return MergedTrace(
        path=target,
        num_traces=len(sources),
        num_files=len(joined.files),
        num_rows=num_rows,
        num_prompts=len(scan.prompts),
        notes=(*metadata.notes, *_describe_left_out(sources, columns)),
    )


@contextmanager
def _adapting_errors(target: Path) -> Iterator[None]:
    """Name the traces instead of the file that they become, and give no option of other commands.

    Raises:
        InputError: The block raised one.
    """
    try:
        yield
    except InputError as error:
        raise InputError(
            error.message.replace(f"'{printable(target)}' has", "The traces together have"),
            hint=_REPAIR_HINT if "--no-validate" in error.hint else error.hint,
            facts=error.facts,
        ) from error


def _describe_left_out(sources: Sequence[TraceSource], columns: Sequence[str]) -> list[str]:
    notes = [
        f"The column {name!r} holds no value, so it is left out."
        for name in dict.fromkeys(name for source in sources for name in source.empty)
    ]
    extra = sorted({name for source in sources for name in source.columns} - set(columns))
    if extra:
        shown = ", ".join(printable(name, max_length=40) for name in extra[:_COLUMNS_SHOWN])
        number, verb = number_of(len(extra), "column"), "is" if len(extra) == 1 else "are"
        notes.append(f"{number} that the format doesn't have {verb} left out: {shown}.")
    companions = [
        path.name
        for source in sources
        for path in find_companions(source.path)
        if path != sidecar_path(source.path)
    ]
    if companions:
        shown = ", ".join(printable(name, max_length=60) for name in companions[:_COLUMNS_SHOWN])
        number, verb = number_of(len(companions), "file"), "is" if len(companions) == 1 else "are"
        notes.append(f"{number} next to the traces {verb} left out: {shown}.")
    return notes


def _refuse_repeated(sources: Sequence[TraceSource]) -> None:
    seen: set[Path] = set()
    for source in sources:
        for file in source.files:
            place = file.resolve()
            if place in seen:
                raise UsageError(
                    f"'{printable(file)}' is given twice.", hint="Give each trace once."
                )
            seen.add(place)


def _take_columns(sources: Sequence[TraceSource]) -> tuple[str, ...]:
    """Return the columns of the format that each trace has; they are the same for all."""
    first = [name for name in TRACE_SCHEMA.names if name in sources[0].columns]
    for source in sources[1:]:
        for name in TRACE_SCHEMA.names:
            if (name in first) != (name in source.columns):
                has, lacks = (sources[0], source) if name in first else (source, sources[0])
                state = "has no value in its column" if name in lacks.empty else "has no column"
                raise InputError(
                    f"'{printable(lacks.path)}' {state} {name!r}, unlike '{printable(has.path)}'.",
                    hint="Merge traces with the same columns, or remove the column first.",
                )
    return tuple(first)


def _merge_metadata(sources: Sequence[TraceSource]) -> TraceMetadata:
    parts = [Part(source.path, source.metadata) for source in sources]
    known = [part for part in parts if part.metadata is not None]
    if not known:
        return TraceMetadata(
            moetool=__version__,
            complete=True,
            exact=False,
            notes=(f"{NOT_EXACT} the merged traces don't say how they were made.",),
        )
    silent = next((part.path for part in parts if part.metadata is None), None)
    if silent is not None:
        raise InputError(
            f"'{printable(silent)}' has no metadata, so it is not known to be of the model of "
            f"'{printable(known[0].path)}'.",
            hint="Merge traces without metadata only with each other.",
        )
    merged = merge_metadata(parts, hint=_MODELS_HINT)
    assert merged is not None
    start = "The parts differ"
    differences = [
        f"The merged traces differ{note.removeprefix(start)}"
        for note in describe_parts(parts)
        if note.startswith(start)
    ]
    notes = dict.fromkeys((*merged.notes, *differences))
    return replace(keep_common(merged, parts), moetool=__version__, notes=tuple(notes))


def _refuse_common_prompts(sources: Sequence[TraceSource]) -> None:
    """Refuse prompts of one id in two traces: they would become one prompt."""
    owner: dict[str, TraceSource] = {}
    for source in sources:
        mine: dict[str, None] = {}
        for table in source.iter_tables(["prompt_id"]):
            if table.num_rows:
                prompt = take_words(table, "prompt_id")
                occurs = [0] if prompt.codes is None else np.flatnonzero(np.bincount(prompt.codes))
                mine.update(dict.fromkeys(prompt.dictionary.take(pa.array(occurs)).to_pylist()))
        common = [word for word in mine if word in owner]
        if common:
            other = owner[common[0]]
            example = printable(common[0], max_length=60)
            raise InputError(
                f"'{printable(source.path)}' and '{printable(other.path)}' have "
                f"{number_of(len(common), 'prompt id')} in common, such as '{example}'.",
                hint=_IDS_HINT,
            )
        owner.update(dict.fromkeys(mine, source))


def _name_prefixes(sources: Sequence[TraceSource]) -> dict[Path, str]:
    """Return the prefix of each file: the name of its trace, made unique by a number."""
    prefixes: dict[Path, str] = {}
    names: set[str] = set()
    for source in sources:
        name = stem = source.path.resolve().stem
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.add(name)
        prefixes.update(dict.fromkeys(source.files, f"{name}/"))
    return prefixes
