"""Whether a run may go on with the parts that another left."""

from __future__ import annotations

from pathlib import Path

from moetool.errors import UsageError
from moetool.printable import printable
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.unfinished.part_files import WAITING_SUFFIX, read_part_info


def check_same_run(folder: Path, identity: RunIdentity) -> None:
    """Check that a run may go on with the parts in a folder; one without parts suits every run.

    Raises:
        UsageError: The parts are of a run that differs, or none can go on with them.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".parquet", WAITING_SUFFIX):
            continue
        info = read_part_info(path)
        if info is not None:
            return identity.check_same(info.identity, folder=folder)
        raise UsageError(
            f"'{printable(path)}' does not state how its run was made, so it can't be resumed.",
            hint="Give --force instead of --resume to start over.",
        )
    return None
