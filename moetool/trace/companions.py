"""Files that go with a trace: the metadata of a CSV, and the router probabilities."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.output.targets import REPLACE_HINT

PROBABILITIES_SUFFIX = ".probabilities.parquet"

# The key, in the footer of probabilities, that names the file of their trace: `a.csv` and
# `a.parquet` share one name for their probabilities.
TRACE_KEY = b"moetool.trace"

_MOVE_HINT = "Move it elsewhere, or choose another name for the trace."


def probabilities_path(target: Path) -> Path:
    """Return the Parquet file, next to a trace, that holds its router probabilities."""
    return target.with_name(f"{target.stem}{PROBABILITIES_SUFFIX}")


def sidecar_path(target: Path) -> Path:
    """Return the JSON file, next to a CSV trace, that holds its metadata."""
    return target.with_name(f"{target.name}.meta.json")


def find_companions(target: Path) -> list[Path]:
    """Return the existing files that a run wrote next to the trace at this path."""
    sidecar, probabilities = sidecar_path(target), probabilities_path(target)
    found = [sidecar] if _is_sidecar(sidecar) else []
    if _read_owner(probabilities) == target.name:
        found.append(probabilities)
    return found


def check_companions(target: Path, *, replace_existing: bool, with_probabilities: bool) -> None:
    """Check that no foreign file lies where a trace's other files would go.

    Probabilities of another trace are only in the way of probabilities.

    Raises:
        UsageError: A file is in the way.
    """
    sidecar, probabilities = sidecar_path(target), probabilities_path(target)
    if target.suffix == ".csv" and os.path.lexists(sidecar) and not _is_sidecar(sidecar):
        raise UsageError(f"'{sidecar}' exists and is not the metadata of a trace.", hint=_MOVE_HINT)
    if os.path.lexists(probabilities):
        owner = _read_owner(probabilities)
        if owner is None:
            raise UsageError(
                f"'{probabilities}' exists and does not state that it belongs to '{target.name}'.",
                hint=_MOVE_HINT,
            )
        if owner != target.name and with_probabilities:
            raise UsageError(f"'{probabilities}' exists and belongs to {owner!r}.", hint=_MOVE_HINT)
    if not replace_existing and (companions := find_companions(target)):
        raise UsageError(f"'{companions[0]}' exists.", hint=REPLACE_HINT)


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
    """Return the file name of the trace that probabilities belong to; None if it is not stated."""
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    try:
        with path.open("rb") as file:
            footer = pq.read_metadata(file).metadata or {}
        return os.fsdecode(bytes(footer[TRACE_KEY]))
    except (OSError, pa.ArrowException, KeyError):
        return None
