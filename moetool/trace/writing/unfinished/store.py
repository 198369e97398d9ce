"""The pieces of an unfinished trace on disk, and the batches of its windows under way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from moetool.output.interrupts import holding_interrupts
from moetool.output.targets import refuse_as_removed
from moetool.trace.metadata import RoutedLayer, TraceMetadata, parse_metadata
from moetool.trace.writing.pieces import EncodedPiece, TraceBatch, TracePiece, encode_as
from moetool.trace.writing.unfinished.finished import FinishedWindow, group_windows
from moetool.trace.writing.unfinished.part_files import (
    WAITING_SUFFIX,
    PartInfo,
    is_batch_name,
    name_batch,
    name_piece,
    name_window,
    read_part_info,
    waiting_path,
    window_of,
)
from moetool.trace.writing.unfinished.part_writing import PartFiles
from moetool.trace.writing.unfinished.resuming import check_same_run

SECONDS_PER_BATCH = 30.0


class PieceStore:
    """Keeps each piece as a part, and the batches of a window that takes long until then.

    Nothing that has its name is lost: the pieces of a window take the place of its batches once all
    are there, and a resumed run leaves pieces of a window that lacks others until it has written
    them again. No two parts ever hold the same rows.

    Parts are written from any thread, several at once, and by several processes.

    Args:
        files: The files of the parts.
    """

    def __init__(self, files: PartFiles) -> None:
        self._files = files
        # Guards the fields below it.
        self._mutex = threading.Lock()
        self._num_rows_of: dict[str, int] = {}
        self._kept_batches: dict[int, dict[int, PartInfo]] = {}
        # Pieces that an interrupted run left, of windows that lack others.
        self._left_pieces: dict[int, list[PartInfo]] = {}
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
            left = self._left_pieces.get(piece.window, [])
            if any(part.num_pieces != piece.num_pieces for part in left):
                self._drop_left(piece.window)
                left = []
        stem = name_piece(piece.window, piece.piece)
        path = waiting_path(self._files.path_of(stem)) if must_wait else self._files.path_of(stem)
        is_left = any(part.number == piece.piece for part in left)
        self._files.write(piece, path, stem=stem, replace_existing=is_left)
        with self._mutex:
            if not must_wait:
                self._num_rows_of[stem] = piece.rows.num_rows
            self._last_part_s = time.monotonic()
        return encode_as(piece)

    def commit(self, encoded: EncodedPiece) -> None:
        """Take a piece in the order of the rows; after a window's last, forget its batches.

        Raises:
            UsageError: The folder or a piece is gone.
        """
        with self._mutex:
            had_batches = encoded.window in self._kept_batches
            if encoded.is_last:
                self._left_pieces.pop(encoded.window, None)
        if encoded.is_last and had_batches:
            self._files.folder.check_held()
            self._swap(encoded.window, num_pieces=encoded.num_pieces)

    def list_paths(self, encoded: EncodedPiece, *, from_start: bool) -> list[Path]:
        """Return the paths of a window's pieces in order.

        Args:
            encoded: The last piece of the window.
            from_start: Begin with those of all windows before it.

        Raises:
            UsageError: The folder is gone.
        """
        earlier = self.list_finished() if from_start and encoded.window else {}
        paths = [
            part.path
            for window, finished in earlier.items()
            if window < encoded.window
            for part in finished.parts
        ]
        return paths + [
            self._files.path_of(name_piece(encoded.window, piece))
            for piece in range(encoded.num_pieces)
        ]

    def keep_batch(self, batch: TraceBatch) -> None:
        """Write a batch's rows as a part that lasts until the pieces of its window are there.

        Raises:
            UsageError: Another run put a part there, or the folder is gone.
            OSError: The part can't be written.
        """
        with self._mutex:
            self._drop_left(batch.window)
        stem = name_batch(batch.window, batch.batch)
        path = self._files.path_of(stem)
        self._files.write(batch, path, stem=stem)
        info = read_part_info(path)
        if info is None:
            raise refuse_as_removed(path)
        with self._mutex:
            self._kept_batches.setdefault(batch.window, {})[batch.batch] = info
            self._num_rows_of[stem] = info.num_rows
            self._last_part_s = time.monotonic()

    def kept_batches(self, window: int) -> dict[int, TraceBatch]:
        """Return the kept batches of a window, by index.

        Raises:
            UsageError: A part was removed or damaged.
        """
        with self._mutex:
            infos = dict(self._kept_batches.get(window, {}))
        return {batch: self._files.read_batch(infos[batch]) for batch in sorted(infos)}

    def list_finished(self) -> dict[int, FinishedWindow]:
        """Return the windows of which all pieces are there, by index, in order.

        Raises:
            UsageError: The folder is gone.
        """
        return group_windows(
            [part for part in self._files.list_parts() if part.path.suffix == ".parquet"]
        )

    def known_metadata(self) -> TraceMetadata:
        """Return the layers that parts describe, each with its largest top-k, and the function.

        Raises:
            UsageError: The folder is gone.
        """
        largest: dict[tuple[str, int], RoutedLayer] = {}
        function = None
        # Most parts have the same metadata.
        each = {part.metadata: part.path for part in self._files.list_parts()}
        for text, path in each.items():
            metadata = parse_metadata(text, source=str(path))
            function = function or metadata.score_function
            for layer in metadata.layers:
                place = (layer.stack, layer.layer)
                known = largest.setdefault(place, layer)
                largest[place] = known.join(layer)
        return TraceMetadata(layers=tuple(largest.values()), score_function=function)

    def list_whole(self) -> list[PartInfo]:
        """Return the pieces of the whole run in the order of its rows.

        Raises:
            UsageError: A part is gone, or was never written.
        """
        finished = self.list_finished()
        parts = [part for window in finished.values() for part in window.parts]
        with self._mutex:
            # Other processes may have replaced batches that an earlier run had kept.
            written = [stem for stem in self._num_rows_of if not is_batch_name(stem)]
        whole = {name_window(window) for window in finished}
        lost = sorted(stem for stem in written if window_of(stem) not in whole)
        num_windows = self._files.identity.num_windows
        if num_windows is None:
            num_windows = max(finished, default=-1) + 1
        lost += [name_piece(window, 0) for window in range(num_windows) if window not in finished]
        if lost:
            raise refuse_as_removed(self._files.path_of(lost[0]))
        return parts

    def take_over(self) -> None:
        """Take over the parts of an interrupted run, and drop what was being written.

        Raises:
            UsageError: They are of another run, or can't be continued.
        """
        check_same_run(self._files.folder.path, self._files.identity)
        with holding_interrupts():
            self._end_swaps()
            finished = self.list_finished()
            parts = self._files.list_parts()
            with_batches = {
                part.window
                for part in parts
                if part.num_pieces is None and part.is_whole and part.window not in finished
            }
            for part in parts:
                if part.num_pieces is None:
                    is_kept = part.is_whole and part.window in with_batches
                else:
                    # With batches, pieces were still waiting.
                    is_kept = part.is_whole and part.window not in with_batches
                if not is_kept:
                    self._files.remove(part.path, stem=part.stem)
            self.look_around()
            self._files.remove_strays(set(self._num_rows_of))

    def look_around(self) -> None:
        """Find the parts that an interrupted run left, once a process has taken them over.

        Raises:
            UsageError: The folder is gone.
        """
        parts, finished = self._files.list_parts(), self.list_finished()
        with self._mutex:
            for part in parts:
                self._num_rows_of[part.stem] = part.num_rows
                if part.num_pieces is None:
                    self._kept_batches.setdefault(part.window, {})[part.number] = part
                elif part.window not in finished:
                    self._left_pieces.setdefault(part.window, []).append(part)

    def _drop_left(self, window: int) -> None:
        """Remove the pieces that an interrupted run left of a window; called with the mutex."""
        for part in self._left_pieces.pop(window, []):
            self._files.remove(part.path, stem=part.stem)
            self._num_rows_of.pop(part.stem, None)

    def _swap(self, window: int, *, num_pieces: int) -> None:
        """Give the pieces of a window the place of its batches.

        No reader ever finds the same rows twice. If the process dies in between, `take_over` goes
        on: from the first step to the last, the pieces are there.
        """
        with holding_interrupts():
            with self._mutex:
                batches = self._kept_batches.pop(window, {})
            for batch in batches.values():
                self._files.folder.remove_file(batch.path)
            for piece in range(num_pieces):
                stem = name_piece(window, piece)
                path = self._files.path_of(stem)
                if not path.exists():
                    try:
                        waiting_path(path).rename(path)
                    except FileNotFoundError as error:
                        raise refuse_as_removed(path) from error
                info = read_part_info(path)
                with self._mutex:
                    self._num_rows_of[stem] = info.num_rows if info else 0
            for batch in batches.values():
                self._files.remove(batch.path, stem=batch.stem)
                with self._mutex:
                    self._num_rows_of.pop(batch.stem, None)

    def _end_swaps(self) -> None:
        """Go on with the swaps that an interrupted run had begun."""
        parts = self._files.list_parts()
        for part in parts:
            if part.num_pieces is None:
                self._kept_batches.setdefault(part.window, {})[part.number] = part
        waiting = {part.window for part in parts if part.path.suffix == WAITING_SUFFIX}
        for window, each in group_windows(parts).items():
            if window in waiting:
                self._swap(window, num_pieces=len(each.parts))
        self._kept_batches.clear()
        self._num_rows_of.clear()
