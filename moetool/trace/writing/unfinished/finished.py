"""Windows of which all pieces are on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.output.targets import refuse_as_removed
from moetool.trace.metadata import TraceMetadata, parse_metadata
from moetool.trace.writing.pieces import PieceFacts
from moetool.trace.writing.unfinished.part_files import SALIENCY_NAME, TEXTS_NAME, PartInfo


@dataclass(frozen=True)
class FinishedWindow:
    """A window whose rows an earlier run, or another process of this one, has written.

    Attributes:
        window: Index of the window in the run.
        parts: Its pieces, in order.
    """

    window: int
    parts: tuple[PartInfo, ...]

    @property
    def facts(self) -> PieceFacts:
        """Its prompts, and sums over them."""
        return reduce(
            add, (part.facts for part in self.parts if isinstance(part.facts, PieceFacts))
        )

    @property
    def num_rows(self) -> int:
        """Its assignments."""
        return sum(part.num_rows for part in self.parts)

    @property
    def metadata(self) -> TraceMetadata:
        """The trace's metadata as it was known then, with the layers that routed so far."""
        last = self.parts[-1]
        return parse_metadata(last.metadata, source=str(last.path))

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of each piece, all columns or those named.

        Raises:
            UsageError: A part was removed or damaged.
        """
        for part in self.parts:
            try:
                # Opened here, because pyarrow only accepts names in UTF-8.
                with part.path.open("rb") as source, pq.ParquetFile(source) as file:
                    yield file.read(columns=None if columns is None else list(columns))
            except (FileNotFoundError, pa.ArrowInvalid) as error:
                raise refuse_as_removed(part.path) from error

    def read_texts(self) -> bytes:
        """Return the lines of its generated texts, in the order of its prompts.

        Raises:
            UsageError: A file of them was removed.
        """
        return b"".join(_read(part, TEXTS_NAME) for part in self.parts)

    def read_saliency(self) -> bytes | None:
        """Return the sums of its experts' outputs; None if the run keeps none.

        Raises:
            UsageError: The file was removed.
        """
        return _read(self.parts[-1], SALIENCY_NAME) or None


def group_windows(parts: Sequence[PartInfo]) -> dict[int, FinishedWindow]:
    """Return the windows of which all pieces are there, by index, in order."""
    pieces: dict[int, dict[int, PartInfo]] = {}
    for part in parts:
        if part.num_pieces is not None and part.is_whole:
            pieces.setdefault(part.window, {})[part.number] = part
    return {
        window: FinishedWindow(window, tuple(pieces[window][at] for at in sorted(pieces[window])))
        for window in sorted(pieces)
        if all(len(pieces[window]) == part.num_pieces for part in pieces[window].values())
    }


def _read(part: PartInfo, folder_name: str) -> bytes:
    path = part.find_companion(folder_name)
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise refuse_as_removed(path) from error
