"""Estimates with what this machine's GPU shows for the same scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.measure import measure_scenarios
from moetool.memory.measured.machine import find_gpu_name, measure_bus
from moetool.memory.measured.measurement import BusBandwidth, Measurement
from moetool.memory.notes.estimate_notes import list_measurement_notes
from moetool.memory.offload.transfer_times import add_transfer_times
from moetool.memory.receipts.saving import find_card_id
from moetool.memory.result import Estimate

_NOT_RUN = "It wasn't measured, because it doesn't fit on this machine's GPU; only the speed of the bus was."


def add_measurements(estimates: Sequence[Estimate], builder: SkeletonBuilder) -> list[Estimate]:
    """Return estimates of one model with the measurements of this machine's GPU.

    Scenarios that don't fit on a named GPU of the same kind are not run: only the bus is measured.

    Raises:
        OutOfMemoryError: A scenario doesn't fit on this machine's GPU.
        UsageError: There is no GPU, or a scenario can't be measured with random weights.
    """
    here = find_card_id(find_gpu_name())
    runs = [
        not (each.is_gpu_named and each.gpu == here and each.does_fit is False)
        for each in estimates
    ]
    scenarios = [each.scenario for each, is_run in zip(estimates, runs, strict=True) if is_run]
    found = iter(measure_scenarios(builder, scenarios) if scenarios else [])
    bus = None if all(runs) else measure_bus()
    return [
        _add(each, next(found)) if is_run else _add_bus(each, bus)
        for each, is_run in zip(estimates, runs, strict=True)
    ]


def _add(estimate: Estimate, measured: Measurement) -> Estimate:
    notes = list_measurement_notes(measured, estimate.scenario.quantization)
    with_bus = _add_times(estimate, measured.bus)
    return replace(with_bus, measured=measured, notes=(*estimate.notes, *notes))


def _add_bus(estimate: Estimate, bus: BusBandwidth | None) -> Estimate:
    return replace(_add_times(estimate, bus), notes=(*estimate.notes, _NOT_RUN))


def _add_times(estimate: Estimate, bus: BusBandwidth | None) -> Estimate:
    if estimate.offload is None:
        return estimate
    return replace(estimate, offload=add_transfer_times(estimate.offload, bus))
