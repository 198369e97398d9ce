"""Files that go with a trace: a CSV's metadata, router probabilities, and experts' saliency."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.targets import REPLACE_HINT

PROBABILITIES_SUFFIX = ".probabilities.parquet"
SALIENCY_SUFFIX = ".saliency.pt"

# The key, in the footer of probabilities, that names the file of their trace: `a.csv` and
# `a.parquet` share one name for their probabilities.
TRACE_KEY = b"moetool.trace"
# The entry with that name in a saliency file, which is a zip archive; torch ignores it.
_TRACE_ENTRY = "archive/extra/moetool.trace"
_LONGEST_NAME = 4096

_MOVE_HINT = "Move it elsewhere, or choose another name for the trace."


def probabilities_path(target: Path) -> Path:
    """Return the Parquet file, next to a trace, that holds its router probabilities."""
    return target.with_name(f"{target.stem}{PROBABILITIES_SUFFIX}")


def sidecar_path(target: Path) -> Path:
    """Return the JSON file, next to a CSV trace, that holds its metadata."""
    return target.with_name(f"{target.name}.meta.json")


def saliency_path(target: Path) -> Path:
    """Return the file of torch, next to a trace, that holds its experts' saliency."""
    return target.with_name(f"{target.stem}{SALIENCY_SUFFIX}")


def find_companions(target: Path) -> list[Path]:
    """Return the existing files that a run wrote next to the trace at this path."""
    sidecar = sidecar_path(target)
    found = [sidecar] if _is_sidecar(sidecar) else []
    return found + [path for path in _list_owned(target) if _read_owner(path) == target.name]


def check_companions(
    target: Path,
    *,
    replace_existing: bool,
    with_probabilities: bool,
    with_saliency: bool = False,
) -> None:
    """Check that no foreign file lies where a trace's other files would go.

    Those of another trace are only in the way if the run writes files of the same kind.

    Raises:
        UsageError: A file is in the way.
    """
    sidecar = sidecar_path(target)
    if target.suffix == ".csv" and os.path.lexists(sidecar) and not _is_sidecar(sidecar):
        raise UsageError(f"'{sidecar}' exists and is not the metadata of a trace.", hint=_MOVE_HINT)
    for path, is_written in zip(
        _list_owned(target), (with_probabilities, with_saliency), strict=True
    ):
        if os.path.lexists(path):
            owner = _read_owner(path)
            if owner is None:
                raise UsageError(
                    f"'{path}' exists and does not state that it belongs to '{target.name}'.",
                    hint=_MOVE_HINT,
                )
            if owner != target.name and is_written:
                raise UsageError(f"'{path}' exists and belongs to {owner!r}.", hint=_MOVE_HINT)
    if not replace_existing and (companions := find_companions(target)):
        raise UsageError(f"'{companions[0]}' exists.", hint=REPLACE_HINT)


def sign_saliency(content: bytes, target: Path) -> bytes:
    """Return a file of torch with the name of the trace that it belongs to added."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(_TRACE_ENTRY, os.fsencode(target.name))
    return buffer.getvalue()


def _list_owned(target: Path) -> tuple[Path, Path]:
    """Return the paths of the files that state which trace they belong to."""
    return probabilities_path(target), saliency_path(target)


def _is_sidecar(path: Path) -> bool:
    """Return whether a path is a file, not a link, that holds the metadata of a trace."""
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    try:
        metadata = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    schema = str(metadata.get("schema")) if isinstance(metadata, dict) else ""
    return schema.startswith(("moetool.trace/", "moetool.loads/"))


def _read_owner(path: Path) -> str | None:
    """Return the file name of the trace that a file belongs to; None if it is not stated."""
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    if path.name.endswith(SALIENCY_SUFFIX):
        return _read_saliency_owner(path)
    try:
        with path.open("rb") as file:
            footer = pq.read_metadata(file).metadata or {}
        return os.fsdecode(bytes(footer[TRACE_KEY]))
    except (OSError, pa.ArrowException, KeyError):
        return None


def _read_saliency_owner(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_TRACE_ENTRY) as entry:
            return os.fsdecode(entry.read(_LONGEST_NAME))
    except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, ValueError):
        return None
