"""The result of a measurement, as reports and receipts show it."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.memory.answers.figures import MemoryFigures, NamedFigures


@dataclass(frozen=True)
class PhaseTimes:
    """Wall times of the phases of a run, with its kernels loaded and the GPU waited for.

    Attributes:
        prefill_s: Median time until the first token of the whole batch is there.
        decode_s_per_token: Median time of one decoding step of the whole batch; None if nothing is
            decoded.
        num_prefills: The number of prefills that were timed.
        num_decode_steps: The number of steps that were timed, the first ones after the prompt.
    """

    prefill_s: float
    decode_s_per_token: float | None
    num_prefills: int
    num_decode_steps: int


@dataclass(frozen=True)
class BusBandwidth:
    """Speed of copies from the host's memory to the GPU, in bytes per second.

    Attributes:
        pinned_bytes_per_s: From page-locked memory, which is as fast as the bus gets.
        pageable_bytes_per_s: From ordinary memory, where accelerate keeps what it offloads.
    """

    pinned_bytes_per_s: float
    pageable_bytes_per_s: float


@dataclass(frozen=True)
class Machine:
    """The software on which a measurement ran, and the memory of its GPU.

    Attributes:
        memory_bytes: The GPU's memory as torch sees it.
        driver: The driver's version; None if its own tool doesn't report it.
        cuda: The version of CUDA that torch was built with; None for another backend.
        versions: Versions by package: moetool, torch, transformers and python.
    """

    memory_bytes: int
    driver: str | None
    cuda: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Geometry:
    """The model whose run was measured, by its configuration.

    Attributes:
        config_sha256: Hash of the configuration, without the fields that say where it is from.
        model_type: The architecture's name in transformers; None if the configuration lacks it.
        num_layers: The decoder layers that ran; None if the configuration doesn't say.
    """

    config_sha256: str
    model_type: str | None
    num_layers: int | None


@dataclass(frozen=True)
class Measurement(NamedFigures):
    """The same scenario, measured on a GPU.

    Attributes:
        gpu: The device's name.
        context_bytes: Memory that the device holds in addition to torch's reserved memory, without
            `held_before_bytes`.
        seconds: Wall time of the run, its first kernels' loading included.
        held_before_bytes: Memory that the device held before this process used it; None if that is
            unknown, in which case it counts toward the context.
        times: Times of its phases in later runs; None if these didn't fit or weren't timed.
        bus: Speed of copies to the GPU; None if it wasn't measured.
        machine: The software that ran; None if it wasn't recorded.
        geometry: The model that ran; None if it wasn't recorded.
    """

    gpu: str
    figures: MemoryFigures
    context_bytes: int
    seconds: float
    held_before_bytes: int | None = None
    times: PhaseTimes | None = None
    bus: BusBandwidth | None = None
    machine: Machine | None = None
    geometry: Geometry | None = None

    @property
    def prefill_s(self) -> float | None:
        """Median time of a prefill; None if it wasn't timed."""
        return self.times.prefill_s if self.times else None

    @property
    def decode_s_per_token(self) -> float | None:
        """Median time of a decoding step; None if nothing is decoded, or it wasn't timed."""
        return self.times.decode_s_per_token if self.times else None
