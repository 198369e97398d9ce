"""Windows and GPUs, shared among processes."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import UsageError
from moetool.tracing.assembly.shares import share_windows
from moetool.tracing.processes.processes import Processes
from moetool.tracing.running.batches import Window
from moetool.tracing.running.own_device import choose_own_device
from tests.tracing.processes.threads import run_in_each


@given(sizes=st.lists(st.integers(1, 20), max_size=7), number=st.integers(1, 4))
def test_no_division_into_neighbours_has_a_smaller_largest_share(
    sizes: list[int], number: int
) -> None:
    windows = [Window(index, index, index + 1) for index in range(len(sizes))]
    shares = share_windows(windows, sizes, number=number)
    assert len(shares) == number
    assert [window for share in shares for window in share] == windows
    largest = max(sum(sizes[window.index] for window in share) for share in shares)
    cuts = combinations(range(len(sizes) + 1), min(number - 1, len(sizes) + 1))
    assert largest == min(
        max(
            sum(sizes[start:stop])
            for start, stop in zip((0, *cut), (*cut, len(sizes)), strict=True)
        )
        for cut in cuts
    )


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs on every host, and those that processes took."""
    taken: list[int] = []
    properties = SimpleNamespace(
        get_device_properties=lambda index: SimpleNamespace(uuid=f"GPU-{index}")
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    monkeypatch.setattr(torch, "get_device_module", lambda _: properties)
    return taken


def own_device(processes: Processes) -> torch.device:
    return choose_own_device(processes, None)


def test_each_process_has_its_own_gpu(two_gpus: list[int]) -> None:
    devices = [future.result() for future in run_in_each(2, own_device)]
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert sorted(two_gpus) == [0, 1]


def test_more_processes_than_gpus_are_refused(two_gpus: list[int]) -> None:
    for future in run_in_each(3, own_device):
        with pytest.raises(
            UsageError, match=r"3 processes were started on \S+, which has 2 GPUs for them\."
        ):
            future.result()
    assert not two_gpus


def test_processes_share_the_cpu(two_gpus: list[int]) -> None:
    ended = run_in_each(3, lambda processes: choose_own_device(processes, "cpu"))
    assert [future.result() for future in ended] == [torch.device("cpu")] * 3
    assert not two_gpus
