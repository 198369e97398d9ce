"""Figures of a run's memory, as reports show them.

All sizes are in bytes. Unknown figures are None, and the estimate's notes say why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moetool.memory.answers.implementation import Implementation
from moetool.simulation.memory.timeline import AllocatedParts


class Method(StrEnum):
    """The origin of a figure.

    Attributes:
        SIMULATED: The model's own code ran without data, and every allocation was followed.
        APPROXIMATE: Simulated under an assumption that the notes name.
        MEASURED: Read from a GPU.
        REPORTED: Published by someone else.
    """

    SIMULATED = "simulated"
    APPROXIMATE = "approximate"
    MEASURED = "measured"
    REPORTED = "reported"


class Phase(StrEnum):
    """A phase of a run: reading prompts and writing tokens, or the three of a step of training."""

    PREFILL = "prefill"
    DECODE = "decode"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Peak:
    """The moment of a phase at which the most memory is allocated.

    Attributes:
        layer: The path of the layer that made the peak; None outside of layers.
        operation: The operation that made the peak, with the module it ran in.
        parts: Everything that is allocated at that moment.
    """

    phase: Phase
    layer: str | None
    operation: str
    parts: AllocatedParts

    @property
    def weights_bytes(self) -> int | None:
        """Parameters and buffers; None if their size is unknown."""
        return self.parts.weights_bytes

    @property
    def cache_bytes(self) -> int:
        """The cache."""
        return self.parts.cache_bytes

    @property
    def activation_bytes(self) -> int:
        """Everything that is neither weights, cache nor workspace."""
        return self.parts.activation_bytes

    @property
    def workspace_bytes(self) -> int:
        """The workspaces that matrix products keep."""
        return self.parts.workspace_bytes

    @property
    def gradient_bytes(self) -> int:
        """Gradients, in training."""
        return self.parts.gradient_bytes

    @property
    def optimizer_state_bytes(self) -> int:
        """The optimizer's states, in training."""
        return self.parts.optimizer_state_bytes

    @property
    def allocated_bytes(self) -> int | None:
        """The sum of all parts; None if the weights are unknown."""
        return self.parts.allocated_bytes

    @property
    def above_weights_bytes(self) -> int:
        """The sum of all parts except the weights."""
        return self.parts.above_weights_bytes


@dataclass(frozen=True)
class MemoryFigures:
    """Memory that a run needs.

    Attributes:
        weights_bytes: Parameters and buffers, as the allocator holds them; None if unknown.
        cache_bytes: The cache after the last token that is run; 0 without a cache.
        peak_allocated_bytes: The value of `torch.cuda.max_memory_allocated`; None if unknown.
        peak_reserved_bytes: The value of `torch.cuda.max_memory_reserved`; None if unknown.
        total_device_bytes: Usage that the device's own tools show, which is reserved memory and the
            CUDA context; None if unknown.
    """

    weights_bytes: int | None
    cache_bytes: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    total_device_bytes: int | None

    @property
    def slack_bytes(self) -> int | None:
        """Memory reserved beyond what is allocated, each at its peak; None if unknown."""
        if self.peak_reserved_bytes is None or self.peak_allocated_bytes is None:
            return None
        return self.peak_reserved_bytes - self.peak_allocated_bytes


class Basis(StrEnum):
    """The bytes of a quantized checkpoint's weights that its figures rest on.

    Attributes:
        LOADED: The bytes of transformers' own modules.
        PUBLISHED: The weights packed as they are published. Whether the GPU holds them packed
            depends on the packages installed there.
        COPY: A copy in the dtype that was asked for.
        UNKNOWN: Nothing, because the size on a GPU is unknown.
    """

    LOADED = "as-loaded"
    PUBLISHED = "as-published"
    COPY = "copy"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a checkpoint that is published quantized, in its files and as loaded.

    Attributes:
        method: The quantization's name.
        stored_bytes: Everything in the files, scales included; None if unknown.
        loaded_bytes: The size on the GPU as transformers loads them; None if unknown.
        is_dequantized: Whether they are loaded in full precision; None if unknown.
        packed_bytes: The part of the files that the model holds, packed as it is published; None
            if unknown.
        dequantized_bytes: The same weights in full precision.
        basis: The bytes that the figures rest on.
        reason: Why the bytes as loaded are unknown; None if they are known.
        implementations: The ways in which transformers loads the format on the GPU, by the packages
            that are installed, those with the most packages first.
    """

    method: str
    stored_bytes: int | None
    loaded_bytes: int | None
    is_dequantized: bool | None
    packed_bytes: int | None = None
    dequantized_bytes: int | None = None
    basis: Basis = Basis.LOADED
    reason: str | None = None
    implementations: tuple[Implementation, ...] = ()

    @property
    def method_name(self) -> str:
        """The quantization's name without its details."""
        return self.method.partition(",")[0]

    @property
    def is_held_packed(self) -> bool:
        """Whether the figures are of weights that stay packed."""
        return self.basis is Basis.PUBLISHED or (
            self.basis is Basis.LOADED and self.is_dequantized is False
        )

    @property
    def held_bytes(self) -> int | None:
        """The weights' share of the figures; None if unknown, or if the figures are of a copy."""
        if self.basis is Basis.LOADED:
            return self.loaded_bytes
        return self.packed_bytes if self.basis is Basis.PUBLISHED else None


class NamedFigures:
    """Gives a result the names of its figures that reports have: `weights_bytes` and so on."""

    figures: MemoryFigures

    @property
    def weights_bytes(self) -> int | None:
        """Parameters and buffers; None if unknown."""
        return self.figures.weights_bytes

    @property
    def cache_bytes(self) -> int | None:
        """The cache after the last token that is run; None if unknown."""
        return self.figures.cache_bytes

    @property
    def peak_allocated_bytes(self) -> int | None:
        """The value of `torch.cuda.max_memory_allocated`; None if unknown."""
        return self.figures.peak_allocated_bytes

    @property
    def peak_reserved_bytes(self) -> int | None:
        """The value of `torch.cuda.max_memory_reserved`; None if unknown."""
        return self.figures.peak_reserved_bytes

    @property
    def total_device_bytes(self) -> int | None:
        """Usage that the device's own tools show; None if unknown."""
        return self.figures.total_device_bytes
