"""The least time on the bus for a token."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.measured.measurement import BusBandwidth
from moetool.memory.offload.transfer_times import add_transfer_times
from tests.report.memory.estimates import OFFLOAD


def test_it_is_the_traffic_over_the_bandwidth() -> None:
    # An 8-layer Mixtral with six layers' experts on the CPU: 2.4 s a token were seen on an H100.
    moved = 6 * 8 * 3 * 4096 * 14336 * 2
    found = add_transfer_times(
        replace(OFFLOAD, transfer_bytes_per_token=moved), BusBandwidth(50e9, 8e9)
    )
    assert found.transfer_s_per_token == moved / 8e9
    assert found.pinned_transfer_s_per_token == moved / 50e9
    assert found.notes == ()


def test_it_is_unknown_until_the_bus_is_measured() -> None:
    unknown = add_transfer_times(OFFLOAD, None)
    assert (unknown.transfer_s_per_token, unknown.pinned_transfer_s_per_token) == (None, None)
    assert len(unknown.notes) == 1
    assert "--measure" in unknown.notes[0]
    assert add_transfer_times(unknown, None) == unknown
    assert add_transfer_times(unknown, BusBandwidth(2.0, 1.0)).notes == ()


def test_nothing_is_said_where_nothing_moves() -> None:
    unmoved = replace(OFFLOAD, num_offloaded_layers=0)
    assert add_transfer_times(unmoved, BusBandwidth(2.0, 1.0)) == unmoved
