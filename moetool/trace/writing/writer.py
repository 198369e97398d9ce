"""Sinks for the rows of a trace: a file, or CSV on a stream.

A file gets its name only when the trace is complete. Until then its closed parts lie in
`<file>.partial/`, itself a trace marked `complete: false`, and stay there after an interrupt or a
crash. The metadata of a CSV and the probabilities appear right after the trace that they belong to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
import pyarrow.csv

from moetool.errors import MoetoolError, UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import (
    check_names,
    check_target_file,
    new_file,
    put_in_place,
    saying_what_failed,
)
from moetool.trace.companions import (
    TRACE_KEY,
    check_companions,
    find_companions,
    probabilities_path,
    saliency_path,
    sidecar_path,
    sign_saliency,
)
from moetool.trace.metadata import FOOTER_KEY, TraceMetadata
from moetool.trace.schema import PROBABILITIES_SCHEMA, TRACE_SCHEMA
from moetool.trace.writing.partial import (
    PROBABILITIES_NAME,
    WHOLE_NAMES,
    PartialFolder,
    check_partial_folder,
    partial_folder,
)
from moetool.trace.writing.parts import PartWriter
from moetool.wording import number_of

FILE_SUFFIXES = (".parquet", ".csv")


class TraceSink(Protocol):
    """A destination for the rows of a trace; a context manager."""

    def __enter__(self) -> Self:
        """Return the sink."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep the rows written so far if the run was broken off."""

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Take rows with `TRACE_SCHEMA`, and rows with `PROBABILITIES_SCHEMA` if recorded."""

    def describe(self, metadata: TraceMetadata) -> None:
        """Take what has become known about the trace since the sink was opened."""

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Take the metadata of the complete trace, and its saliency; nothing is written after."""


class TraceFile:
    """A trace that becomes a `.parquet` or `.csv` file.

    Use it as a context manager. If it is left before the trace is finished, it closes its rows as
    parts, and adds a note to the exception, if there is one, that says where they are.

    Args:
        target: File to write.
        metadata: What is known before the run; parts carry it with `complete: false`.
        replace_existing: Replace an existing file, and unfinished parts of an earlier run.
        schema: Schema of the rows: `TRACE_SCHEMA`, or some of its columns.
        keeps_parts: Keep the parts if the trace is left before it is finished.

    Raises:
        UsageError: The target cannot be written, or another run is writing it.
    """

    def __init__(
        self,
        target: Path,
        *,
        metadata: TraceMetadata,
        replace_existing: bool = False,
        schema: pa.Schema = TRACE_SCHEMA,
        keeps_parts: bool = True,
    ) -> None:
        check_target(target, replace_existing=replace_existing)
        self.target = target
        self.partial = partial_folder(target)
        self._replace_existing = replace_existing
        self._keeps_parts = keeps_parts
        self._is_finished = False
        self._metadata = replace(metadata, complete=False)
        with saying_what_failed(target):
            self._folder = PartialFolder(target, discard=replace_existing)
        self._rows = self._open_parts(self.partial, schema)
        self._probabilities = self._open_parts(
            self.partial / PROBABILITIES_NAME, PROBABILITIES_SCHEMA
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_finished:
            return
        with holding_interrupts():
            # A write that failed before may fail again; closed parts stay.
            with suppress(OSError, MoetoolError):
                if self._keeps_parts:
                    self._rows.flush()
                    self._probabilities.flush()
            if not (self._keeps_parts and self._rows.num_rows):
                self._folder.remove()
                return
            self._folder.release()
            if error is not None and self.partial.is_dir():
                rows = number_of(self._rows.num_rows, "row")
                error.add_note(f"rows traced so far: {self.partial} ({rows})")

    def write(self, rows: pa.Table, probabilities: pa.Table | None = None) -> None:
        """Collect rows, and close a part now and then.

        Raises:
            UsageError: A part cannot be written, or the folder of the parts is gone.
        """
        with saying_what_failed(self.target):
            self._rows.append(rows)
            if probabilities is not None:
                if not self._probabilities.num_parts:
                    self._folder.check_held()
                    self._probabilities.folder.mkdir(exist_ok=True)
                self._probabilities.append(probabilities)

    def flush(self) -> None:
        """Close the rows collected so far as a part."""
        with saying_what_failed(self.target):
            self._rows.flush()

    def describe(self, metadata: TraceMetadata) -> None:
        """Give later parts this metadata, still with `complete: false`."""
        self._metadata = replace(metadata, complete=False)

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        """Write the complete trace to its place and remove the parts.

        Raises:
            UsageError: The trace cannot be written; the parts stay.
        """
        with saying_what_failed(self.target), self._folder.emptied_of_wholes():
            self._rows.flush()
            self._probabilities.flush()
            places = self._merge(metadata.to_footer(), saliency)
            with holding_interrupts():
                self._put_in_place(places)
                self._is_finished = True
                self._folder.remove()

    def _merge(self, footer: dict[bytes, bytes], saliency: bytes | None) -> list[tuple[Path, Path]]:
        """Return the finished files and the place of each, the trace first."""
        whole, sidecar, scores, outputs = (self.partial / name for name in WHOLE_NAMES)
        places = [(whole, self.target)]
        if self.target.suffix == ".csv":
            self._rows.merge_into_csv(whole)
            with new_file(sidecar) as file:
                file.write(footer[FOOTER_KEY])
            places.append((sidecar, sidecar_path(self.target)))
        else:
            self._rows.merge_into_parquet(whole, footer=footer)
        if self._probabilities.num_rows:
            footer = {**footer, TRACE_KEY: os.fsencode(self.target.name)}
            self._probabilities.merge_into_parquet(scores, footer=footer)
            places.append((scores, probabilities_path(self.target)))
        if saliency is not None:
            with new_file(outputs) as file:
                file.write(sign_saliency(saliency, self.target))
            places.append((outputs, saliency_path(self.target)))
        return places

    def _put_in_place(self, places: Sequence[tuple[Path, Path]]) -> None:
        """Give the finished files their names, so that those in place always belong to one trace.

        Companions of the old trace go before it does; those of the new one come after it.
        """
        self._folder.check_held()
        check_target(
            self.target,
            replace_existing=self._replace_existing,
            with_probabilities=self._probabilities.num_rows > 0,
            with_saliency=any(path == saliency_path(self.target) for _, path in places),
            is_running=True,
        )
        for path in find_companions(self.target):
            path.unlink()
        for unfinished, path in places:
            put_in_place(unfinished, path, replace_existing=self._replace_existing)

    def _open_parts(self, folder: Path, schema: pa.Schema) -> PartWriter:
        return PartWriter(
            folder, schema=schema, footer=self._footer, check_folder=self._folder.check_held
        )

    def _footer(self) -> dict[bytes, bytes]:
        return self._metadata.to_footer()


def list_places(target: Path) -> list[Path]:
    """Return every path that a run may write for a trace at a target."""
    return [
        target,
        sidecar_path(target),
        probabilities_path(target),
        saliency_path(target),
        partial_folder(target),
    ]


def check_target(
    target: Path,
    *,
    replace_existing: bool,
    with_probabilities: bool = False,
    with_saliency: bool = False,
    inputs: Iterable[Path] = (),
    is_running: bool = False,
) -> None:
    """Check that a trace can be written to a path, before any work is done for it.

    Args:
        target: Path of the trace.
        replace_existing: Accept an existing trace, and the parts of an unfinished run.
        with_probabilities: The run also writes probabilities.
        with_saliency: The run also writes saliency.
        inputs: Files that the run reads.
        is_running: The run already holds the folder of the parts.

    Raises:
        UsageError: The path exists, an earlier run left parts there, another run writes there, or
            its folder cannot be used.
    """
    if target.suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"The format of '{target}' is unknown.", hint="End the name in .parquet or .csv."
        )
    check_target_file(target, replace_existing=replace_existing, inputs=inputs)
    check_names(
        [
            partial_folder(target),
            *([sidecar_path(target)] if target.suffix == ".csv" else []),
            *([probabilities_path(target)] if with_probabilities else []),
            *([saliency_path(target)] if with_saliency else []),
        ]
    )
    check_companions(
        target,
        replace_existing=replace_existing,
        with_probabilities=with_probabilities,
        with_saliency=with_saliency,
    )
    if not is_running:
        with saying_what_failed(target):
            check_partial_folder(target, discard=replace_existing)
