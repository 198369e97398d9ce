"""Reading of the router probabilities that lie next to a trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.companions import find_companions, probabilities_path
from moetool.trace.reading.files import open_file
from moetool.trace.reading.reader import TraceSource
from moetool.trace.reading.words import encode_words
from moetool.trace.schema import PROBABILITIES_SCHEMA

# Values read at a time: 32 MiB.
_VALUES_AT_ONCE = 1 << 24
_MOST_ROWS = 1 << 16
_READ_ERRORS = (pa.ArrowException, ValueError, KeyError, OSError)
_HINT = "Trace again with --probabilities, or move the file away to go on without it."


@dataclass(frozen=True)
class LayerProbabilities:
    """Probabilities of consecutive decisions of one layer.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        prompt: Index of each decision's prompt, in order of first occurrence. # (num_decisions,)
        probabilities: # (num_decisions, num_experts)
    """

    stack: str
    layer: int
    prompt: NDArray[np.int64]
    probabilities: NDArray[np.float16]


@dataclass(frozen=True)
class ProbabilitySource:
    """Router probabilities that were found, but not yet read.

    Attributes:
        path: The file; the trace itself where they are in memory.
        score_function: Function that turned the router's scores into them: `softmax`, `sigmoid`,
            `identity`; None if it is unknown.
        tables: Those in memory; None if they are in the file.
    """

    path: Path
    score_function: str | None
    tables: Sequence[pa.Table] | None = None

    def __iter__(self) -> Iterator[LayerProbabilities]:
        """Yield the probabilities in the order of their rows, a part of one layer at a time.

        Raises:
            InputError: The file is damaged, or a value is not a probability.
        """
        index_of: dict[str, int] = {}
        first_row = 0
        try:
            for table in self._iter_tables():
                if table.num_rows:
                    yield from self._split(table, index_of, first_row)
                    first_row += table.num_rows
        except _READ_ERRORS as error:
            seen = printable(str(error).strip().partition("\n")[0])
            raise self._refuse("can't be read as probabilities", f"seen: {seen}") from error

    def _iter_tables(self) -> Iterator[pa.Table]:
        names = PROBABILITIES_SCHEMA.names
        if self.tables is not None:
            for table in self.tables:
                yield from _slice(table.select(names))
            return
        with open_file(self.path) as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
            rows = _MOST_ROWS
            for batch in parquet.iter_batches(batch_size=rows, columns=names):
                yield from _slice(pa.Table.from_batches([batch]).cast(PROBABILITIES_SCHEMA))

    def _split(
        self, table: pa.Table, index_of: dict[str, int], first_row: int
    ) -> Iterator[LayerProbabilities]:
        for name in PROBABILITIES_SCHEMA.names:
            if table.column(name).null_count:
                raise self._refuse(f"has a row without {name!r}")
        words, prompt = encode_words(table, "prompt_id", default="")
        known = np.array([index_of.setdefault(word, len(index_of)) for word in words])
        stacks, stack = encode_words(table, "stack", default="decoder")
        layer = table.column("layer").to_numpy().astype(np.int64)
        lists = table.column("probabilities").combine_chunks()
        ends = np.cumsum(lists.value_lengths().to_numpy())
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float16)
        is_wrong = ~(np.isfinite(values) & (values >= 0))
        if is_wrong.any():
            row = int(np.searchsorted(ends, is_wrong.argmax(), side="right"))
            raise self._refuse(
                f"has a probability of {values[is_wrong.argmax()]} in row {first_row + row}"
            )
        widths = np.diff(ends, prepend=0)
        changes = np.diff(stack) | np.diff(layer) | np.diff(widths)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        for start, end in zip(starts, [*starts[1:], table.num_rows], strict=True):
            yield LayerProbabilities(
                stack=stacks[stack[start]],
                layer=int(layer[start]),
                prompt=known[prompt[start:end]],
                probabilities=values[ends[start] - widths[start] : ends[end - 1]].reshape(
                    end - start, int(widths[start])
                ),
            )

    def _refuse(self, words: str, *facts: str) -> InputError:
        return InputError(f"'{printable(self.path)}' {words}.", hint=_HINT, facts=facts)


def find_probabilities(source: TraceSource) -> ProbabilitySource | None:
    """Return the probabilities that belong to a trace in a file; None if there are none."""
    path = probabilities_path(source.path)
    if source.table is not None or path not in find_companions(source.path):
        return None
    metadata = source.metadata
    return ProbabilitySource(path, metadata.score_function if metadata else None)


def _slice(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table, fewer rows at a time where its lists are long."""
    if not table.num_rows:
        return
    width = len(table.column("probabilities")[0])
    rows = max(1, min(_MOST_ROWS, _VALUES_AT_ONCE // max(1, width)))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)
