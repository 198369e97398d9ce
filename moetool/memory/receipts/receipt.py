"""A receipt: one run as it was predicted and as a GPU showed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moetool.memory.answers.figures import MemoryFigures
from moetool.memory.measured.measurement import BusBandwidth, Geometry, PhaseTimes
from moetool.memory.scenario import Scenario

SCHEMA = "moetool.receipts/1"


@dataclass(frozen=True)
class Card:
    """The GPU that a run was measured on.

    Attributes:
        name: The device's name, as torch reports it.
        gpu: Its id in the catalogue; None if it isn't known there.
        memory_bytes: Its memory as torch sees it; None if it wasn't recorded.
        driver: The driver's version; None if it wasn't recorded.
        cuda: The version of CUDA that torch was built with; None if it wasn't recorded.
    """

    name: str
    gpu: str | None
    memory_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The estimate of a run, made without the GPU.

    Attributes:
        method: The origin of the figures: `simulated` or `approximate`.
        figures: The run's memory.
        context_bytes: The CUDA context's size; None if unknown.
        prefill_at_least_s: The lower bound on the time of the prefill on this card; None if unknown.
        decode_at_least_s_per_token: The lower bound on the time of a decoding step; None if it is
            unknown or if nothing is decoded.
        versions: Versions of what predicted, by package.
    """

    method: str
    figures: MemoryFigures
    context_bytes: int | None
    prefill_at_least_s: float | None
    decode_at_least_s_per_token: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Shown:
    """The run as the GPU showed it.

    Attributes:
        figures: The run's memory.
        context_bytes: Memory of the device in addition to what torch reserves.
        seconds: Wall time of the first run, its kernels' loading included.
        held_before_bytes: Memory that the device held before; None if unknown.
        times: Times of the phases in later runs; None if they weren't timed.
        bus: Speed of copies to the GPU; None if it wasn't measured.
        versions: Versions of what ran, by package.
    """

    figures: MemoryFigures
    context_bytes: int
    seconds: float
    held_before_bytes: int | None
    times: PhaseTimes | None
    bus: BusBandwidth | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Receipt:
    """One run as it was predicted and as a GPU showed it.

    Attributes:
        date: The day of the measurement, such as `2026-11-27`.
        model: The model's name, without the folders that it lies in.
        geometry: The configuration that ran, by its hash.
        scenario: The run.
        card: The GPU.
        predicted: The estimate.
        measured: The measurement.
        lacks: What a receipt of `--save` has and this one doesn't.
    """

    date: str
    model: str
    geometry: Geometry
    scenario: Scenario
    card: Card
    predicted: Prediction
    measured: Shown
    lacks: tuple[str, ...] = field(default=())

    @property
    def prefill_over_bound(self) -> float | None:
        """The time of the prefill over its lower bound; None if either is unknown."""
        times = self.measured.times
        return _divide(times.prefill_s if times else None, self.predicted.prefill_at_least_s)

    @property
    def decode_over_bound(self) -> float | None:
        """The time of a decoding step over its lower bound; None if either is unknown."""
        times = self.measured.times
        return _divide(
            times.decode_s_per_token if times else None,
            self.predicted.decode_at_least_s_per_token,
        )

    @property
    def allocated_error(self) -> float | None:
        """Predicted minus measured peak of allocated memory, as a share of the measured one."""
        return _find_error(
            self.predicted.figures.peak_allocated_bytes, self.measured.figures.peak_allocated_bytes
        )

    @property
    def reserved_error(self) -> float | None:
        """The same for the peak of reserved memory."""
        return _find_error(
            self.predicted.figures.peak_reserved_bytes, self.measured.figures.peak_reserved_bytes
        )


def _divide(number: float | None, by: float | None) -> float | None:
    return number / by if number is not None and by else None


def _find_error(predicted: int | None, measured: int | None) -> float | None:
    return None if predicted is None or not measured else (predicted - measured) / measured
