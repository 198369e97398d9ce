"""Whether a run may go on with the parts that another left."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.errors import UsageError
from moetool.printable import printable
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.unfinished.part_files import WAITING_SUFFIX, read_part_info


def check_same_run(folder: Path, identity: RunIdentity) -> None:
    """Check that a run may go on with the parts in a folder; one without parts suits every run.

    Raises:
        UsageError: The parts are of a run that differs, or none can go on with them.
    """
    for path in _list_parts(folder):
        info = read_part_info(path)
        if info is not None:
            return identity.check_same(info.identity, folder=folder)
        # One that can't be read was torn by a crash of the whole machine.
        if _is_parquet(path):
            raise UsageError(
                f"'{printable(path)}' does not state how its run was made, so it can't be resumed.",
                hint="Give --force instead of --resume to start over.",
            )
    return None


def may_replace(folder: Path) -> bool:
    """Return whether the run that left its parts in a folder may replace a trace at its target."""
    infos = map(read_part_info, _list_parts(folder))
    return next((info.may_replace for info in infos if info is not None), False)


def _list_parts(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.suffix in (".parquet", WAITING_SUFFIX)]


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            pq.read_metadata(file)
    except (OSError, pa.ArrowException):
        return False
    return True
