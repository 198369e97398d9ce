"""Scenarios that fit are measured; for the others, the bus is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moetool.memory.measured.measurement import BusBandwidth
from moetool.memory.receipts import measuring
from moetool.memory.receipts.measuring import add_measurements
from moetool.memory.result import Estimate
from tests.memory.receipts.receipts import make_measured
from tests.report.memory.estimates import OFFLOAD

BUS = BusBandwidth(pinned_bytes_per_s=14e9, pageable_bytes_per_s=7e9)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The scenarios that run on a machine with an H200."""
    ran: list[Any] = []

    def measure(_: object, scenarios: list[Any]) -> list[Any]:
        ran.extend(scenarios)
        return [replace(make_measured().measured, bus=BUS) for _ in scenarios]  # type: ignore[type-var]

    monkeypatch.setattr(measuring, "measure_scenarios", measure)
    monkeypatch.setattr(measuring, "measure_bus", lambda: BUS)
    monkeypatch.setattr(measuring, "find_gpu_name", lambda: "NVIDIA H200")
    return ran


def make_unmeasured(*, fits: bool, gpu: str = "h200") -> Estimate:
    estimate = replace(make_measured(), measured=None, offload=OFFLOAD, gpu=gpu)
    fit = replace(estimate.fits[0], gpu=gpu, fits=fits)
    return replace(estimate, fits=(fit,))


def test_what_does_not_fit_here_is_not_run_and_the_bus_is_measured(run: list[Any]) -> None:
    small, large = make_unmeasured(fits=True), make_unmeasured(fits=False)
    builder: Any = None
    first, second, third = add_measurements([large, small, large], builder)
    assert len(run) == 1
    assert (first.measured, third.measured) == (None, None)
    assert second.measured is not None
    for estimate in (first, second, third):
        assert estimate.offload is not None
        assert estimate.offload.transfer_s_per_token == OFFLOAD.transfer_bytes_per_token / 7e9
        assert (
            estimate.offload.pinned_transfer_s_per_token == OFFLOAD.transfer_bytes_per_token / 14e9
        )
    assert "only the speed of the bus" in first.notes[-1]


def test_what_does_not_fit_on_another_card_is_run_here(run: list[Any]) -> None:
    builder: Any = None
    (estimate,) = add_measurements([make_unmeasured(fits=False, gpu="rtx-4090")], builder)
    assert len(run) == 1
    assert estimate.measured is not None
