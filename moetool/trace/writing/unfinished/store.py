"""The pieces of an unfinished trace on disk, and the batches of its windows under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import new_file, put_in_place, refuse_as_removed
from moetool.trace.metadata import RoutedLayer, parse_metadata
from moetool.trace.schema import PROBABILITIES_SCHEMA
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.parquet_files import new_parquet
from moetool.trace.writing.partial import PartialFolder
from moetool.trace.writing.parts import RUN_KEY, refuse_as_shared
from moetool.trace.writing.pieces import (
    BatchFacts,
    EncodedPiece,
    TraceBatch,
    TracePiece,
    encode_as,
)
from moetool.trace.writing.unfinished.finished import FinishedWindow, group_windows
from moetool.trace.writing.unfinished.part_files import (
    COMPANION_SUFFIXES,
    PROBABILITIES_NAME,
    SALIENCY_NAME,
    TEXTS_NAME,
    WAITING_SUFFIX,
    PartInfo,
    companion_path,
    is_batch_name,
    list_parts,
    make_part_entry,
    name_batch,
    name_piece,
    read_part_info,
    waiting_path,
)
from moetool.trace.writing.unfinished.resuming import check_same_run

SECONDS_PER_BATCH = 30.0


class PieceStore:
    """Writes each piece as a part that has its name only once all that belongs to it is there.

    Parts are written from any thread, several at once, and by several processes.

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
        may_replace: bool = False,
    ) -> None:
        self._folder = folder
        self._may_replace = may_replace
        self._schema = schema
        self._identity = identity
        self._footer = footer
        # Guards the fields below it.
        self._mutex = threading.Lock()
        self._num_rows_of: dict[str, int] = {}
        self._kept_batches: dict[int, dict[int, PartInfo]] = {}
        self._last_part_s = time.monotonic()

    @property
    def num_rows(self) -> int:
        """Assignments in the parts so far."""
        with self._mutex:
            return sum(self._num_rows_of.values())

    @property
    def is_overdue(self) -> bool:
        """Whether so much time has passed since the last part that batches are to be kept."""
        return time.monotonic() - self._last_part_s >= SECONDS_PER_BATCH

    def encode(self, piece: TracePiece) -> EncodedPiece:
        """Write a piece's part and what belongs to it.

        Raises:
            UsageError: Another run put a part there, or the folder is gone.
            OSError: The part can't be written.
        """
        with self._mutex:
            must_wait = piece.window in self._kept_batches
        stem = name_piece(piece.window, piece.piece)
        path = self._folder.path / f"{stem}.parquet"
        path = waiting_path(path) if must_wait else path
        self._write(piece, path, stem)
        return encode_as(piece, num_bytes=path.stat().st_size)

    def commit(self, encoded: EncodedPiece) -> None:
        """Take a piece in the order of the rows; after a window's last, forget its batches."""
        with self._mutex:
            had_batches = encoded.window in self._kept_batches
        if encoded.is_last and had_batches:
            self._folder.check_held()
            self._swap(encoded.window, num_pieces=encoded.num_pieces)

    def keep_batch(self, batch: TraceBatch) -> None:
        """Write a batch's rows as a part that lasts until the pieces of its window are there.

        Raises:
            UsageError: Another run put a part there, or the folder is gone.
            OSError: The part can't be written.
        """
        stem = name_batch(batch.window, batch.batch)
        path = self._folder.path / f"{stem}.parquet"
        self._write(batch, path, stem)
        info = read_part_info(path)
        if info is None:
            raise refuse_as_removed(path)
        with self._mutex:
            self._kept_batches.setdefault(batch.window, {})[batch.batch] = info

    def kept_batches(self, window: int) -> dict[int, TraceBatch]:
        """Return the kept batches of a window, by index.

        Raises:
            UsageError: A part was removed or damaged.
        """
        with self._mutex:
            infos = dict(self._kept_batches.get(window, {}))
        return {batch: self._read_batch(infos[batch]) for batch in sorted(infos)}

    def list_finished(self) -> dict[int, FinishedWindow]:
        """Return the windows of which all pieces are there, by index, in order."""
        return group_windows(
            [part for part in self._list_parts() if part.path.suffix == ".parquet"]
        )

    def list_layers(self) -> tuple[RoutedLayer, ...]:
        """Return the layers that parts describe, each with its largest top-k."""
        largest: dict[tuple[str, int], RoutedLayer] = {}
        # Most parts have the same metadata.
        each = {part.metadata: part.path for part in self._list_parts()}
        for metadata, path in each.items():
            for layer in parse_metadata(metadata, source=str(path)).layers:
                known = largest.setdefault((layer.stack, layer.layer), layer)
                if layer.top_k > known.top_k:
                    largest[layer.stack, layer.layer] = layer
        return tuple(largest.values())

    def list_whole(self) -> list[PartInfo]:
        """Return the pieces of the whole run in the order of its rows.

        Raises:
            UsageError: A part is gone, or was never written.
        """
        finished = self.list_finished()
        parts = [part for window in finished.values() for part in window.parts]
        found = {part.stem for part in parts}
        with self._mutex:
            # Other processes may have replaced batches that an earlier run had kept.
            written = (stem for stem in self._num_rows_of if not is_batch_name(stem))
            lost = sorted(stem for stem in written if stem not in found)
        num_windows = self._identity.num_windows
        if num_windows is None:
            num_windows = max(finished, default=-1) + 1
        lost += [name_piece(window, 0) for window in range(num_windows) if window not in finished]
        if lost:
            raise refuse_as_removed(self._folder.path / f"{lost[0]}.parquet")
        return parts

    def find_batches(self) -> None:
        """Find the batches that an interrupted run kept, after another process took them over."""
        finished = self.list_finished()
        for part in self._list_parts():
            if part.num_pieces is None and part.window not in finished and part.is_whole:
                self._kept_batches.setdefault(part.window, {})[part.number] = part

    def take_over(self) -> None:
        """Take over the parts of an interrupted run: drop what is unfinished, count the rest.

        Raises:
            UsageError: They are of another run, or can't be continued.
        """
        check_same_run(self._folder.path, self._identity)
        with holding_interrupts():
            parts = self._list_parts()
            self._end_swaps(parts)
            finished = self.list_finished()
            for part in self._list_parts():
                is_kept = (
                    part.window in finished
                    if part.num_pieces is not None
                    else part.window not in finished and part.is_whole
                )
                if not is_kept:
                    self._remove(part.path, part.stem)
                    continue
                self._num_rows_of[part.stem] = part.num_rows
                if part.num_pieces is None:
                    self._kept_batches.setdefault(part.window, {})[part.number] = part
            self._remove_strays()

    def _write(self, part: TracePiece | TraceBatch, path: Path, stem: str) -> None:
        folder = self._folder.path
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
                identity=self._identity,
                companions=companions,
                may_replace=self._may_replace,
            ),
            RUN_KEY: self._identity.token,
        }
        self._folder.check_held()
        try:
            # The rows come last: with them, all is there.
            for name, content in companions.items():
                (folder / name).mkdir(exist_ok=True)
                self._put(content, companion_path(folder, name, stem), footer, PROBABILITIES_SCHEMA)
            self._put(part.rows, path, footer, self._schema)
        except (FileExistsError, UsageError) as error:
            raise refuse_as_shared(folder) from error
        except FileNotFoundError as error:
            raise refuse_as_removed(folder) from error
        with self._mutex:
            self._num_rows_of[stem] = part.rows.num_rows
            self._last_part_s = time.monotonic()

    def _put(
        self,
        content: pa.Table | bytes,
        path: Path,
        footer: Mapping[bytes, bytes],
        schema: pa.Schema,
    ) -> None:
        unfinished = path.with_name(f"_{path.stem.removeprefix('_')}.unfinished")
        try:
            if isinstance(content, bytes):
                with new_file(unfinished) as file:
                    file.write(content)
            else:
                with new_parquet(unfinished, schema, footer=footer) as writer:
                    writer.write_table(content)
            with holding_interrupts():
                put_in_place(unfinished, path, replace_existing=False)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise

    def _read_batch(self, info: PartInfo) -> TraceBatch:
        def read(path: Path | None) -> bytes | None:
            return None if path is None else path.read_bytes()

        def read_table(path: Path, schema: pa.Schema) -> pa.Table:
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

    def _swap(self, window: int, *, num_pieces: int) -> None:
        """Give the pieces of a window the place of its batches.

        No reader ever finds the same rows twice. If the process dies in between, `take_over` goes
        on: from the first step to the last, the pieces are there.
        """
        folder = self._folder.path
        with holding_interrupts():
            with self._mutex:
                batches = self._kept_batches.pop(window, {})
            for batch in batches.values():
                self._folder.remove_file(batch.path)
            for piece in range(num_pieces):
                path = folder / f"{name_piece(window, piece)}.parquet"
                if not path.exists():
                    try:
                        waiting_path(path).rename(path)
                    except FileNotFoundError as error:
                        raise refuse_as_removed(path) from error
            for batch in batches.values():
                self._remove(batch.path, batch.stem)

    def _end_swaps(self, parts: list[PartInfo]) -> None:
        """Go on with the swaps that an interrupted run had begun."""
        for part in parts:
            if part.num_pieces is None and part.path.suffix == ".parquet":
                self._kept_batches.setdefault(part.window, {})[part.number] = part
        # A piece may have both names, if the file system renames by linking.
        waiting = {part.window for part in parts if part.path.suffix == WAITING_SUFFIX}
        for window, each in group_windows(parts).items():
            if window in waiting:
                self._swap(window, num_pieces=len(each.parts))
        self._kept_batches.clear()

    def _list_parts(self) -> list[PartInfo]:
        return list_parts(self._folder.path, self._identity)

    def _remove(self, path: Path, stem: str) -> None:
        """Remove a part, and then what belongs to it."""
        self._folder.remove_file(path)
        for name in COMPANION_SUFFIXES:
            self._folder.remove_file(companion_path(self._folder.path, name, stem))
        with self._mutex:
            self._num_rows_of.pop(stem, None)

    def _remove_strays(self) -> None:
        """Remove files that no complete part has: those that were being written."""
        for path in self._folder.list_files():
            stem = path.name.removesuffix(path.suffix)
            is_part = path.parent == self._folder.path and path.suffix == ".parquet"
            is_companion = path.parent != self._folder.path and not stem.startswith("_")
            if not ((is_part or is_companion) and stem in self._num_rows_of):
                self._folder.remove_file(path)
