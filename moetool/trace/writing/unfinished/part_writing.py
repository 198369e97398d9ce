"""Parts of an unfinished trace and what belongs to them, written, read and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import new_file, put_in_place, refuse_as_removed
from moetool.trace.schema import PROBABILITIES_SCHEMA
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.parquet_files import new_parquet
from moetool.trace.writing.partial import PartialFolder
from moetool.trace.writing.parts import RUN_KEY, refuse_as_shared
from moetool.trace.writing.pieces import BatchFacts, TraceBatch, TracePiece
from moetool.trace.writing.unfinished.part_files import (
    COMPANION_SUFFIXES,
    PROBABILITIES_NAME,
    SALIENCY_NAME,
    TEXTS_NAME,
    PartInfo,
    companion_path,
    list_parts,
    make_part_entry,
)


class PartFiles:
    """The files of a run's parts; several threads and processes may use them at once.

    Args:
        folder: Of the unfinished trace.
        schema: Schema of the rows.
        identity: Of the run; each part states it.
        footer: Returns the metadata for the next part, as entries of its footer.
        may_replace: Whether the run may replace a trace at the target.
    """

    def __init__(
        self,
        folder: PartialFolder,
        *,
        schema: pa.Schema,
        identity: RunIdentity,
        footer: Callable[[], Mapping[bytes, bytes]],
        may_replace: bool,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self._schema = schema
        self._footer = footer
        self._may_replace = may_replace

    def path_of(self, stem: str) -> Path:
        """Return the path of a part."""
        return self.folder.path / f"{stem}.parquet"

    def write(
        self,
        part: TracePiece | TraceBatch,
        path: Path,
        *,
        stem: str,
        replace_existing: bool = False,
    ) -> None:
        """Write a part, which has its name only once all that belongs to it is there.

        Args:
            part: The rows, and what belongs to them.
            path: Path of the rows.
            stem: Name of what belongs to them, without a suffix.
            replace_existing: Replace an earlier version of the part.

        Raises:
            UsageError: Another run put a part there, or the folder is gone.
            OSError: The part can't be written.
        """
        folder = self.folder.path
        contents = {
            PROBABILITIES_NAME: part.probabilities,
            TEXTS_NAME: part.texts,
            SALIENCY_NAME: part.saliency,
        }
        companions = {name: each for name, each in contents.items() if each is not None}
        footer = {
            **self._footer(),
            **make_part_entry(
                part,
                identity=self.identity,
                companions=companions,
                may_replace=self._may_replace,
            ),
            RUN_KEY: self.identity.token,
        }
        self.folder.check_held()
        try:
            for name, content in companions.items():
                (folder / name).mkdir(exist_ok=True)
                place = companion_path(folder, name, stem)
                with _unfinished(place, replace_existing=replace_existing) as unfinished:
                    _write(content, unfinished, PROBABILITIES_SCHEMA, footer)
            with _unfinished(path, replace_existing=replace_existing) as unfinished:
                _write(part.rows, unfinished, self._schema, footer)
        except (FileExistsError, UsageError) as error:
            raise refuse_as_shared(folder) from error
        except FileNotFoundError as error:
            raise refuse_as_removed(folder) from error

    def read_batch(self, info: PartInfo) -> TraceBatch:
        """Return a batch that was kept.

        Raises:
            UsageError: A file was removed or damaged.
        """

        def read(path: Path | None) -> bytes | None:
            return None if path is None else path.read_bytes()

        def read_table(path: Path, schema: pa.Schema) -> pa.Table:
            # Opened here, because pyarrow only accepts names in UTF-8.
            with path.open("rb") as source, pq.ParquetFile(source) as file:
                table: pa.Table = file.read().cast(schema)
            return table

        probabilities = info.find_companion(PROBABILITIES_NAME)
        assert isinstance(info.facts, BatchFacts)
        try:
            return TraceBatch(
                window=info.window,
                batch=info.number,
                facts=info.facts,
                rows=read_table(info.path, self._schema),
                probabilities=None
                if probabilities is None
                else read_table(probabilities, PROBABILITIES_SCHEMA),
                texts=read(info.find_companion(TEXTS_NAME)),
                saliency=read(info.find_companion(SALIENCY_NAME)),
            )
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise refuse_as_removed(info.path) from error

    def list_parts(self) -> list[PartInfo]:
        """Return the pieces and batches of this run that are complete, in name order.

        Raises:
            UsageError: The folder is gone.
        """
        return list_parts(self.folder.path, self.identity)

    def remove(self, path: Path, *, stem: str) -> None:
        """Remove a part, and then what belongs to it."""
        self.folder.remove_file(path)
        for name in COMPANION_SUFFIXES:
            self.folder.remove_file(companion_path(self.folder.path, name, stem))

    def remove_strays(self, stems: set[str]) -> None:
        """Remove all files of runs except parts with these names, and what belongs to them."""
        for path in self.folder.list_files():
            stem = path.name.removesuffix(path.suffix)
            is_part = path.parent == self.folder.path and path.suffix == ".parquet"
            is_companion = path.parent != self.folder.path and not stem.startswith("_")
            if not ((is_part or is_companion) and stem in stems):
                self.folder.remove_file(path)


@contextmanager
def _unfinished(path: Path, *, replace_existing: bool) -> Iterator[Path]:
    """Yield the path of a file that gets its name when the block has ended, or is removed."""
    unfinished = path.with_name(f"_{path.stem.removeprefix('_')}.unfinished")
    try:
        yield unfinished
        with holding_interrupts():
            put_in_place(unfinished, path, replace_existing=replace_existing)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _write(
    content: pa.Table | bytes, path: Path, schema: pa.Schema, footer: Mapping[bytes, bytes]
) -> None:
    if isinstance(content, bytes):
        with new_file(path) as file:
            file.write(content)
    else:
        with new_parquet(path, schema, footer=footer) as writer:
            writer.write_table(content)
