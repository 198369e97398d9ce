"""Parquet parts of a stream of tables, each readable once closed, and their merging into a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.targets import put_in_place, refuse_as_removed
from moetool.trace.writing.formats.csv_text import join_csv
from moetool.trace.writing.formats.joined_files import join_parquet
from moetool.trace.writing.joined_ahead import JoinAhead
from moetool.trace.writing.parquet_files import new_parquet, open_part

ROWS_PER_PART = 1_000_000
SECONDS_PER_PART = 30.0

# The key, in a part's footer, that distinguishes the parts of two runs.
RUN_KEY = b"moetool.run"


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
        run: Distinguishes the parts of this run from those of others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        schema: pa.Schema,
        footer: Callable[[], Mapping[bytes, bytes]],
        check_folder: Callable[[], None],
        run: bytes,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.num_rows = 0
        self._footer = footer
        self._check_folder = check_folder
        self._collected: list[pa.Table] = []
        self._num_collected = 0
        self._parts: list[Path] = []
        self._run = run
        self._last_part_s = time.monotonic()
        self._ahead: JoinAhead | None = None

    @property
    def num_parts(self) -> int:
        """Parts closed so far."""
        return len(self._parts)

    @property
    def is_joining(self) -> bool:
        """Whether parts are being merged ahead."""
        return self._ahead is not None

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
        # pandas reads every file of a folder except those whose names begin so.
        unfinished = part.with_name(f"_{part.stem}.unfinished")
        self._check_folder()
        try:
            footer = {**self._footer(), RUN_KEY: self._run}
            with new_parquet(unfinished, self.schema, footer=footer) as writer:
                writer.write_table(rows)
            put_in_place(unfinished, part, replace_existing=False)
        except (FileExistsError, UsageError) as error:
            raise refuse_as_shared(self.folder) from error
        except FileNotFoundError as error:
            raise refuse_as_removed(self.folder) from error
        self._parts.append(part)

    def adopt(self, part: Path, *, num_rows: int) -> None:
        """Take a part of the same run that was closed elsewhere as the next one."""
        self._parts.append(part)
        self.num_rows += num_rows

    def join_ahead(self, parts: Sequence[Path], path: Path) -> None:
        """Begin to merge parts that will be adopted in this order, or go on with it.

        If the file can't be made, they are merged in the end.

        Args:
            parts: The next parts.
            path: The path that `merge_into_parquet` will get.
        """
        if self._ahead is None:
            with suppress(OSError):
                self._ahead = JoinAhead(path, self.schema, check=self._check_own)
        if self._ahead is not None:
            self._ahead.add(parts)

    def give_up_joining(self) -> None:
        """Remove what was merged ahead."""
        if self._ahead is not None:
            self._ahead.give_up()
            self._ahead = None

    def merge_into_parquet(self, path: Path, *, footer: Mapping[bytes, bytes]) -> None:
        """Write the rows of all parts into one new Parquet file with the given footer."""
        self.flush()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.finish(self._parts, footer):
            return
        join_parquet(self._parts, path, self.schema, footer=footer, check=self._check_own)

    def merge_into_csv(self, path: Path) -> None:
        """Write the rows of all parts into one new CSV file."""
        self.flush()
        for part in self._parts:
            with open_part(part) as source:
                self._check_own(pq.read_metadata(source))
        join_csv(self._parts, path, self.schema)

    def _check_own(self, part: pq.FileMetaData) -> None:
        """Check that a part is not another run's."""
        if part.metadata.get(RUN_KEY) != self._run:
            raise refuse_as_shared(self.folder)


def _join(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def refuse_as_shared(folder: Path) -> UsageError:
    """Return the error for a folder in which another run wrote parts."""
    return UsageError(
        f"Another run wrote to '{folder}' during this one.",
        hint="Give each run another target.",
    )
