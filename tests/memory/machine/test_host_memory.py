"""The memory that is available, by files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.memory.machine import host_memory
from moetool.memory.machine.host_memory import find_available_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the system's, where nothing is limited."""
    monkeypatch.setattr(host_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(host_memory, "_CGROUPS", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_available(root: Path, *, gib: int) -> None:
    text = f"MemFree: 1 kB\nMemAvailable:   {gib * 2**20} kB\nBuffers: 5 kB\n"
    write(root / "proc" / "meminfo", text)


def test_without_the_files_of_linux_it_is_unknown(root: Path) -> None:
    assert not (root / "proc").exists()
    assert find_available_bytes() is None


def test_it_is_what_linux_calls_available(root: Path) -> None:
    write_available(root, gib=9)
    assert find_available_bytes() == 9 * GIB


@pytest.mark.parametrize("folder", ["a/b", "a", "."])
def test_it_is_at_most_what_the_limits_of_all_enclosing_groups_leave(
    folder: str, root: Path
) -> None:
    write_available(root, gib=100)
    write(root / "proc" / "self" / "cgroup", "0::/a/b\n")
    write(root / "cgroup" / "a" / "b" / "memory.max", "max\n")
    write(root / "cgroup" / "a" / "b" / "memory.current", f"{GIB}\n")
    assert find_available_bytes() == 100 * GIB
    group = root / "cgroup" / folder
    write(group / "memory.max", f"{8 * GIB}\n")
    write(group / "memory.current", f"{5 * GIB}\n")
    assert find_available_bytes() == 3 * GIB
    write(group / "memory.stat", f"anon 3\ninactive_file {2 * GIB}\nactive_file 7\n")
    assert find_available_bytes() == 5 * GIB
    write(group / "memory.current", f"{11 * GIB}\n")
    assert find_available_bytes() == 0


def test_limits_of_the_first_version_of_groups_count_too(root: Path) -> None:
    write(root / "proc" / "self" / "cgroup", "9:cpu,cpuacct:/\n4:memory:/docker/x\n0::/\n")
    # The name that the group has outside of the container is unknown inside.
    write(root / "cgroup" / "memory" / "memory.limit_in_bytes", f"{8 * GIB}\n")
    write(root / "cgroup" / "memory" / "memory.usage_in_bytes", f"{5 * GIB}\n")
    write(root / "cgroup" / "memory" / "memory.stat", f"total_inactive_file {GIB}\n")
    assert find_available_bytes() == 4 * GIB
