"""Parquet parts of a stream of tables, each readable once closed, and their merging into a file."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.targets import new_file, put_in_place, refuse_as_removed
from moetool.trace.schema import plain_schema
from moetool.trace.writing.parquet_files import choose_group_size, join_parquet, new_parquet

ROWS_PER_PART = 1_000_000
SECONDS_PER_PART = 30.0

# The key, in a part's footer, that distinguishes the parts of two runs.
_RUN_KEY = b"moetool.run"


class PartWriter:
    """Collects rows and closes them as another Parquet part whenever there are enough.

    A part gets its name only when it is complete, so a killed run leaves nothing broken behind and
    loses only the rows collected since the last part. The writer merges only parts that it closed
    itself, whatever else the folder holds.

    Args:
        folder: Folder for the parts; it must exist when the first part is closed.
        schema: Schema of each table appended.
        footer: Returns the metadata for the next part, as entries of its footer.
        check_folder: Raises if the folder no longer belongs to this run; called before each part.
    """

    def __init__(
        self,
        folder: Path,
        *,
        schema: pa.Schema,
        footer: Callable[[], Mapping[bytes, bytes]],
        check_folder: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.num_rows = 0
        self._footer = footer
        self._check_folder = check_folder
        self._collected: list[pa.Table] = []
        self._num_collected = 0
        self._parts: list[Path] = []
        self._run = secrets.token_hex(8).encode()
        self._last_part_s = time.monotonic()

    @property
    def num_parts(self) -> int:
        """Parts closed so far."""
        return len(self._parts)

    def append(self, table: pa.Table) -> None:
        """Collect a table's rows."""
        self._collected.append(table)
        self._num_collected += table.num_rows
        waited_s = time.monotonic() - self._last_part_s
        if self._num_collected >= ROWS_PER_PART or waited_s >= SECONDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Close the collected rows as a part.

        Raises:
            UsageError: Another run put a part there, or the folder is gone.
            OSError: The part cannot be written; the collected rows are kept.
        """
        if self._num_collected:
            self._write_part(_join(self._collected))
            self.num_rows += self._num_collected
        self._collected, self._num_collected = [], 0
        self._last_part_s = time.monotonic()

    def _write_part(self, rows: pa.Table) -> None:
        part = self.folder / f"part-{len(self._parts):05d}.parquet"
        unfinished = part.with_suffix(".unfinished")
        self._check_folder()
        try:
            footer = {**self._footer(), _RUN_KEY: self._run}
            with new_parquet(unfinished, self.schema, footer=footer) as writer:
                writer.write_table(rows, row_group_size=choose_group_size(rows.num_rows))
            put_in_place(unfinished, part, replace_existing=False)
        except (FileExistsError, UsageError) as error:
            raise _refuse_as_shared(self.folder) from error
        except FileNotFoundError as error:
            raise refuse_as_removed(self.folder) from error
        self._parts.append(part)

    def merge_into_parquet(self, path: Path, *, footer: Mapping[bytes, bytes]) -> None:
        """Write the rows of all parts into one new Parquet file with the given footer."""
        self.flush()
        for part in self._parts:
            self._check_is_ours(part)
        join_parquet(self._parts, path, self.schema, footer=footer)

    def merge_into_csv(self, path: Path) -> None:
        """Write the rows of all parts into one new CSV file."""
        schema = plain_schema(self.schema)
        with new_file(path) as file, pa.csv.CSVWriter(file, schema) as writer:
            for table in self._read_groups():
                writer.write_table(table.cast(schema))

    def _read_groups(self) -> Iterator[pa.Table]:
        """Yield the rows of all parts in order, about `ROWS_PER_PART` at a time."""
        self.flush()
        group: list[pa.Table] = []
        for path in self._parts:
            group.append(self._read_part(path))
            if sum(table.num_rows for table in group) >= ROWS_PER_PART:
                yield _join(group)
                group = []
        if group:
            yield _join(group)

    def _check_is_ours(self, path: Path) -> None:
        try:
            with path.open("rb") as source:
                self._check_run(pq.read_metadata(source))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise refuse_as_removed(path) from error

    def _check_run(self, metadata: pq.FileMetaData) -> None:
        if metadata.metadata.get(_RUN_KEY) != self._run:
            raise _refuse_as_shared(self.folder)

    def _read_part(self, path: Path) -> pa.Table:
        try:
            # Opened here, because pyarrow only accepts names in UTF-8.
            with path.open("rb") as source, pq.ParquetFile(source) as file:
                self._check_run(file.metadata)
                return file.read().cast(self.schema)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise refuse_as_removed(path) from error


def _join(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _refuse_as_shared(folder: Path) -> UsageError:
    return UsageError(
        f"Another run wrote to '{folder}' during this one.",
        hint="Give each run another target.",
    )
