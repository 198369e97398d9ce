"""Names and footers of the parts of an unfinished trace.

Readers of a folder of Parquet files, such as pandas, skip names that begin with an underscore. Only
complete parts with rows of the trace have other names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.targets import refuse_as_removed
from moetool.trace.metadata import FOOTER_KEY
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.pieces import BatchFacts, PieceFacts, TraceBatch, TracePiece

# The key, in a part's footer, of what a later run needs to go on.
PART_KEY = b"moetool.part"

PROBABILITIES_NAME = "_probabilities"
TEXTS_NAME = "_texts"
SALIENCY_NAME = "_saliency"
# Folders with what belongs to the rows of a part, and the suffix of the files there.
COMPANION_SUFFIXES = {PROBABILITIES_NAME: ".parquet", TEXTS_NAME: ".jsonl", SALIENCY_NAME: ".sums"}

WAITING_SUFFIX = ".waiting"
_SUFFIXES = (".parquet", WAITING_SUFFIX)
_NAME = re.compile(
    r"_?part-\d{5,}(-\d{3,}|\.batch-\d{3,})?\.(parquet|unfinished|waiting|jsonl|sums)"
)


@dataclass(frozen=True)
class PartInfo:
    """The footer of a part.

    Attributes:
        path: The file.
        identity: Of its run.
        window: Index of its window in the run.
        number: Index of its piece or batch in the window.
        num_pieces: Pieces of its window; None for a batch.
        facts: Of the piece or the batch.
        companions: Names of the folders that hold a file that belongs to it.
        may_replace: Whether its run may replace a trace at the target.
        num_rows: Its assignments.
        metadata: The trace's, as JSON.
    """

    path: Path
    identity: RunIdentity
    window: int
    number: int
    num_pieces: int | None
    facts: PieceFacts | BatchFacts
    companions: tuple[str, ...]
    may_replace: bool
    num_rows: int
    metadata: bytes

    @property
    def stem(self) -> str:
        """Its name without a suffix, which is also that of its companions."""
        if self.num_pieces is None:
            return name_batch(self.window, self.number)
        return name_piece(self.window, self.number)

    def find_companion(self, folder_name: str) -> Path | None:
        """Return the file that belongs to it in a folder; None if there is none."""
        if folder_name not in self.companions:
            return None
        return companion_path(self.path.parent, folder_name, self.stem)

    @property
    def is_whole(self) -> bool:
        """Whether all that belongs to it is there."""
        paths = (self.find_companion(name) for name in self.companions)
        return all(path is not None and path.is_file() for path in paths)


def name_piece(window: int, piece: int) -> str:
    """Return the name of a piece's files, without a suffix."""
    return f"part-{window:05d}-{piece:03d}"


def waiting_path(path: Path) -> Path:
    """Return the path of a piece while rows of it also lie in parts of batches."""
    return path.with_name(f"_{path.stem}{WAITING_SUFFIX}")


def name_batch(window: int, batch: int) -> str:
    """Return the name of a batch's files, without a suffix."""
    return f"part-{window:05d}.batch-{batch:03d}"


def is_batch_name(stem: str) -> bool:
    """Return whether a part's name, without a suffix, is that of a batch."""
    return ".batch-" in stem


def companion_path(folder: Path, folder_name: str, stem: str) -> Path:
    """Return the path of what belongs to a part, in a folder next to it."""
    return folder / folder_name / f"{stem}{COMPANION_SUFFIXES[folder_name]}"


def is_part_name(name: str) -> bool:
    """Return whether a run may have given a file of its parts this name."""
    return _NAME.fullmatch(name) is not None


def make_part_entry(
    part: TracePiece | TraceBatch,
    *,
    identity: RunIdentity,
    companions: Mapping[str, Any],
    may_replace: bool,
) -> dict[bytes, bytes]:
    """Return the entry of a part's footer."""
    place = (
        {"window": part.window, "piece": part.piece, "num_pieces": part.num_pieces}
        if isinstance(part, TracePiece)
        else {"window": part.window, "batch": part.batch}
    )
    values = {
        "identity": identity.values,
        **place,
        "companions": list(companions),
        "may_replace": may_replace,
        **asdict(part.facts),
    }
    return {PART_KEY: json.dumps(values).encode()}


def read_part_info(path: Path) -> PartInfo | None:
    """Return the footer of a part; None if the file is not one that a run can go on from."""
    try:
        with path.open("rb") as file:
            footer = pq.read_metadata(file)
        entries = footer.metadata or {}
        values = json.loads(entries[PART_KEY])
        is_piece = "piece" in values
        return PartInfo(
            path=path,
            identity=RunIdentity(dict(values["identity"])),
            window=int(values["window"]),
            number=int(values["piece" if is_piece else "batch"]),
            num_pieces=int(values["num_pieces"]) if is_piece else None,
            facts=PieceFacts.from_dict(values) if is_piece else BatchFacts.from_dict(values),
            companions=tuple(name for name in values["companions"] if name in COMPANION_SUFFIXES),
            may_replace=bool(values["may_replace"]),
            num_rows=footer.num_rows,
            metadata=entries[FOOTER_KEY],
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError):
        return None


def list_parts(folder: Path, identity: RunIdentity) -> list[PartInfo]:
    """Return the pieces and batches of a run that are complete, in name order.

    Raises:
        UsageError: The folder was removed.
    """
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError as error:
        raise refuse_as_removed(folder) from error
    infos = map(read_part_info, (path for path in paths if path.suffix in _SUFFIXES))
    token = identity.token
    return [info for info in infos if info is not None and info.identity.token == token]


def count_rows(folder: Path, identity: RunIdentity) -> int:
    """Return the assignments in the parts of a run that are on disk, by whichever process."""
    try:
        return sum(part.num_rows for part in list_parts(folder, identity))
    except UsageError:
        return 0
