"""A recorded trace as a value: its figures, its rows, and the file that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from moetool.analysis.routing_summary import RoutingSummary, summarize_routing
from moetool.choices import take_flag, take_path
from moetool.errors import UsageError
from moetool.html_table import show_values
from moetool.printable import printable
from moetool.trace.facts import describe_choices
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.counts import ExpertCounts
from moetool.trace.reading.frames import open_table
from moetool.trace.reading.reader import TraceSource, make_trace_frame, open_trace, read_trace
from moetool.trace.writing.writer import TraceFile
from moetool.tracing.timing import RunTimings
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Trace:
    """The routing of a model over prompts.

    Attributes:
        metadata: How it was made.
        num_rows: Number of assignments.
        counts: Assignments by domain, layer and expert.
        path: The file that holds the rows; None if they are in memory.
        tables: The rows in memory.
        probabilities: The routers' probabilities in memory, if they were recorded.
        timings: Where the time of the run went.
    """

    metadata: TraceMetadata
    num_rows: int
    counts: ExpertCounts
    path: Path | None = None
    tables: tuple[pa.Table, ...] = field(default=(), repr=False)
    probabilities: tuple[pa.Table, ...] = field(default=(), repr=False)
    timings: RunTimings | None = None

    def __repr__(self) -> str:
        metadata = self.metadata
        routing = describe_choices(metadata.layers)
        where = f"; {printable(self.path)}" if self.path else ""
        sizes = ", ".join(
            number_of(number, noun)
            for number, noun in (
                (metadata.num_prompts, "prompt"),
                (metadata.num_tokens, "token"),
                (self.num_rows, "row"),
            )
        )
        layers = number_of(len(metadata.layers), "layer")
        return f"<Trace of {printable(metadata.model)}: {sizes}; {routing} in {layers}{where}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the figures of the trace, and where its rows are."""
        metadata = self.metadata
        values = {
            **{
                name: getattr(metadata, name)
                for name in ("model", "num_prompts", "num_tokens", "num_decisions")
            },
            "num_rows": self.num_rows,
            "num_layers": len(metadata.layers),
            "domains": ", ".join(self.summary.domain_tokens),
        }
        more = "rows: .to_frame() · load and domains: .summary · how it was made: .metadata"
        headline = repr(self).removeprefix("<").removesuffix(">")
        return show_values(headline, values, more=more)

    @cached_property
    def summary(self) -> RoutingSummary:
        """The evenness of the load, and the experts that each domain prefers."""
        return summarize_routing(self.counts)

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as `read_trace` does: one for each expert chosen, metadata in `attrs`."""
        if self.path is not None:
            return read_trace(self.path, validate=False)
        return make_trace_frame(self.tables, metadata=self.metadata, notes=self.open().notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as it is stored with the trace."""
        return self.metadata.to_dict()

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the trace to a .parquet or .csv file, and return its path.

        Args:
            path: The file to write.
            overwrite: Replace an existing file.

        Raises:
            UsageError: The file exists or can't be written, or the rows are in a file already.
        """
        target = take_path(path, name="file")
        overwrite = take_flag(overwrite, name="overwrite")
        if self.path is not None:
            raise UsageError(
                f"The rows of this trace are not in memory but in '{self.path}'.",
                hint="Copy that file.",
            )
        with TraceFile(target, metadata=self.metadata, replace_existing=overwrite) as sink:
            for index, table in enumerate(self.tables):
                sink.write(table, self.probabilities[index] if self.probabilities else None)
            sink.finish(self.metadata)
        return target

    def open(self) -> TraceSource:
        """Return the trace for the functions that read one."""
        if self.path is not None:
            return open_trace(self.path)
        table = pa.concat_tables(self.tables).unify_dictionaries()
        return open_table(table, metadata=self.metadata)
