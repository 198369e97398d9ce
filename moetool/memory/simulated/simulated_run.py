"""A simulated run of a scenario, and the same run with other weights or on a smaller GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from moetool.memory.answers.figures import MemoryFigures, Method, Peak, Phase
from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.training.training_memory import TrainingMemory
from moetool.simulation.memory.allocator.caching_allocator import DeviceFullError
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, PhasePeak

# The path of a module in a member of a list.
_IN_A_LAYER = re.compile(r"(?P<layer>.*?\.[0-9]+)(?:\.(?P<module>.*)|$)")
# Replays a run where torch's allocator may take this many bytes of a GPU; None stands for as many as
# it asks for. Raises `DeviceFullError` if the run doesn't complete in that much.
Replay = Callable[[int | None], MemoryProfile]


@dataclass(frozen=True)
class SimulatedFigures:
    """Memory that a simulated run needs, with every figure known.

    Attributes:
        weights_bytes: Parameters and buffers, as the allocator holds them.
        cache_bytes: The cache after the last token that is run; 0 without a cache.
        peak_allocated_bytes: The value of `torch.cuda.max_memory_allocated`.
        peak_reserved_bytes: The value of `torch.cuda.max_memory_reserved`.
        total_device_bytes: Reserved memory and the CUDA context.
    """

    weights_bytes: int
    cache_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    total_device_bytes: int

    @property
    def context_bytes(self) -> int:
        """The CUDA context."""
        return self.total_device_bytes - self.peak_reserved_bytes

    @property
    def beyond_weights_and_cache_bytes(self) -> int:
        """Memory reserved at the peak, except weights and cache."""
        return self.peak_reserved_bytes - self.weights_bytes - self.cache_bytes

    def shift_weights(self, num_bytes: int) -> SimulatedFigures:
        """Return the figures of the same run with weights that are larger by some bytes."""
        return SimulatedFigures(
            weights_bytes=self.weights_bytes + num_bytes,
            cache_bytes=self.cache_bytes,
            peak_allocated_bytes=self.peak_allocated_bytes + num_bytes,
            peak_reserved_bytes=self.peak_reserved_bytes + num_bytes,
            total_device_bytes=self.total_device_bytes + num_bytes,
        )

    def show(self) -> MemoryFigures:
        """Return the figures for a report."""
        return MemoryFigures(**asdict(self))

    def show_without_weights(self) -> MemoryFigures:
        """Return the figures for a report in which the weights are unknown."""
        return MemoryFigures(
            weights_bytes=None,
            cache_bytes=self.cache_bytes,
            peak_allocated_bytes=None,
            peak_reserved_bytes=None,
            total_device_bytes=None,
        )


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run of a scenario.

    Attributes:
        figures: The memory it needs.
        peaks: The peaks of prefill and of decoding.
        method: `APPROXIMATE` if the simulation rests on an assumption.
        notes: The assumptions.
        prompt_cache_bytes: The part of the cache that holds the prompt; 0 if not all of it is filled.
        host_cache_bytes: The part of the cache in the host's memory.
        needs_data: Why the model's code can't run unless routing is assumed to be balanced; None if
            it can.
        communication_bytes: The most that results of collectives hold at once.
        work: A measure of the time that one pass through the model takes in simulation.
        shifted_bytes: Bytes added to the weights since the simulation.
        replay: Replays the run with less memory for the allocator; None if it isn't kept.
        training: The parts of a step of training; None for other runs.
        assistant: The part of an assistant, which the figures include; None without one.
    """

    figures: SimulatedFigures
    peaks: tuple[Peak, ...]
    method: Method
    notes: tuple[str, ...] = ()
    prompt_cache_bytes: int = 0
    host_cache_bytes: int = 0
    needs_data: str | None = None
    communication_bytes: int = 0
    work: int = field(default=0, compare=False)
    shifted_bytes: int = field(default=0, compare=False)
    replay: Replay | None = field(default=None, repr=False, compare=False)
    training: TrainingMemory | None = None
    assistant: AssistantMemory | None = None

    @property
    def own_weights_bytes(self) -> int:
        """The weights without those of an assistant."""
        return self.figures.weights_bytes - (self.assistant.weights_bytes if self.assistant else 0)

    def shift_weights(self, num_bytes: int) -> SimulatedRun:
        """Return the same run with weights that are larger by some bytes."""
        if not num_bytes:
            return self
        weights_bytes = self.figures.weights_bytes + num_bytes
        return replace(
            self,
            figures=self.figures.shift_weights(num_bytes),
            peaks=tuple(_set_weights(peak, weights_bytes) for peak in self.peaks),
            shifted_bytes=self.shifted_bytes + num_bytes,
        )

    def limit_to(self, memory_bytes: int) -> SimulatedRun | None:
        """Return the same run on a GPU with that much memory; None if it doesn't complete there.

        Where the GPU has no room left, torch's allocator gives back what it holds in reserve and
        asks again, so a run may fit that would otherwise take more.

        Args:
            memory_bytes: The GPU's memory, including the CUDA context's part.

        Raises:
            ValueError: The run would take more, and its replay wasn't kept.
        """
        if self.figures.total_device_bytes <= memory_bytes:
            return self
        if self.replay is None:
            raise ValueError("the run can't be replayed")
        context_bytes = self.figures.context_bytes
        try:
            profile = self.replay(memory_bytes - context_bytes - self.shifted_bytes)
        except DeviceFullError:
            return None
        limited = replace(
            self,
            figures=make_figures(profile, context_bytes=context_bytes),
            peaks=make_peaks(profile),
            shifted_bytes=0,
        )
        return limited.shift_weights(self.shifted_bytes)

    def show_peaks_without_weights(self) -> tuple[Peak, ...]:
        """Return the peaks for a report in which the weights are unknown."""
        return tuple(_set_weights(peak, None) for peak in self.peaks)


def make_figures(profile: MemoryProfile, *, context_bytes: int) -> SimulatedFigures:
    """Return the figures of a replayed run on a GPU with a CUDA context."""
    return SimulatedFigures(
        weights_bytes=profile.weights_bytes,
        cache_bytes=profile.cache_bytes,
        peak_allocated_bytes=profile.peak_allocated_bytes,
        peak_reserved_bytes=profile.peak_reserved_bytes,
        total_device_bytes=profile.peak_reserved_bytes + context_bytes,
    )


def make_peaks(profile: MemoryProfile) -> tuple[Peak, ...]:
    """Return the peaks of a replayed run, phase by phase."""
    if profile.training_phases:
        return tuple(
            _make_peak(Phase(name), peak) for name, peak in profile.training_phases.items()
        )
    peaks = [_make_peak(Phase.PREFILL, profile.prefill)]
    if profile.decode is not None:
        peaks.append(_make_peak(Phase.DECODE, profile.decode))
    return tuple(peaks)


def _make_peak(phase: Phase, peak: PhasePeak) -> Peak:
    layer, inner = peak.origin.layer, peak.origin.module
    if not layer and (found := _IN_A_LAYER.match(inner)):
        # Where no layer repeats another, nothing has marked where it begins.
        layer, inner = found["layer"], found["module"]
    module = f" in {inner}" if inner else ""
    return Peak(
        phase=phase,
        layer=layer or None,
        operation=f"{peak.origin.operation}{module}",
        parts=peak.parts,
    )


def _set_weights(peak: Peak, weights_bytes: int | None) -> Peak:
    return replace(peak, parts=replace(peak.parts, weights_bytes=weights_bytes))
