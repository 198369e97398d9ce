"""The memory of this machine that programs can take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Linux counts what it could drop, such as cached files, as available.
_AVAILABLE = re.compile(r"^MemAvailable: +(?P<kib>[0-9]+) kB$", re.M)
# Cached files that a control group could drop.
_DROPPABLE = re.compile(r"^(?:total_)?inactive_file (?P<bytes>[0-9]+)$", re.M)
# Version 2 of control groups has an empty list of controllers.
_GROUP = re.compile(r"^[0-9]+:(?P<controllers>[^:]*):/(?P<path>.*)$", re.M)
# The files of a group's limit and use, and the folder of its hierarchy, by version.
_FILES_V2 = ("memory.max", "memory.current", "")
_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory")


def find_available_bytes() -> int | None:
    """Return the memory that programs can take without swapping; None if the system doesn't say.

    In a container, that is at most what its limit leaves.
    """
    text = _read(_PROC / "meminfo")
    found = None if text is None else _AVAILABLE.search(text)
    sizes = [*_list_left_in_groups(), *([] if found is None else [int(found["kib"]) * 1024])]
    return min(sizes, default=None)


def _list_left_in_groups() -> Iterator[int]:
    """Yield the memory that is left in each control group of this process that has a limit."""
    for group in _GROUP.finditer(_read(_PROC / "self" / "cgroup") or ""):
        controllers = group["controllers"].split(",")
        if controllers == [""]:
            files = _FILES_V2
        elif "memory" in controllers:
            files = _FILES_V1
        else:
            continue
        root = _CGROUPS / files[2]
        # A container sees its own group as the root, whatever the name it had outside.
        folder = Path(group["path"])
        for parent in (folder, *folder.parents):
            left_bytes = _find_left_bytes(root / parent, limit=files[0], used=files[1])
            if left_bytes is not None:
                yield left_bytes


def _find_left_bytes(folder: Path, *, limit: str, used: str) -> int | None:
    limit_text, used_text = _read(folder / limit), _read(folder / used)
    # Version 2 writes `max` where there is no limit.
    if limit_text is None or used_text is None or not limit_text.strip().isdecimal():
        return None
    droppable = _DROPPABLE.search(_read(folder / "memory.stat") or "")
    droppable_bytes = 0 if droppable is None else int(droppable["bytes"])
    return max(0, int(limit_text) - int(used_text) + droppable_bytes)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
