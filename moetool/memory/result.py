"""Results of a memory estimate. Reports show these values unchanged.

All sizes are in bytes. Unknown figures are None, and the notes say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from moetool.memory.figures import Basis, MemoryFigures, Method, Peak, StoredWeights
from moetool.memory.on_gpus import Fit, Limits, Offload, RankBytes, SpeedBound
from moetool.memory.scenario import Scenario
from moetool.quantized.kinds import Quantization


@dataclass(frozen=True)
class Measurement:
    """The same scenario, measured on a GPU.

    Attributes:
        gpu: The device's name.
        context_bytes: Memory that the device holds in addition to torch's reserved memory, without
            `held_before_bytes`.
        seconds: Wall time of the run.
        held_before_bytes: Memory that the device held before this process used it; None if that is
            unknown, in which case it counts toward the context.
    """

    gpu: str
    figures: MemoryFigures
    context_bytes: int
    seconds: float
    held_before_bytes: int | None = None


@dataclass(frozen=True)
class Estimate:
    """Memory that a model needs for a scenario.

    Attributes:
        model: The model's name, as it was given.
        method: The origin of the figures.
        gpu: The id of the GPU that everything except `fits` is about.
        figures: The run's memory, for `scenario.experts`.
        context_bytes: The CUDA context's size on the device; None if unknown.
        peaks: The peaks of prefill and of decoding, in this order; the latter is missing if nothing
            is decoded.
        variants: With quantization: `transformers`, as it loads the model today, and
            `experts_quantized`, where routed experts are quantized too. For a checkpoint that is
            published quantized: `as_published`, packed, if that is known, and `dequantized`.
            Otherwise empty.
        fits: Answers for each GPU and quantization.
        limits: The largest scenarios that fit; None if unknown, or if no GPU was named.
        ranks: Ways in which several GPUs would share the weights.
        offload: Experts in the host's memory; None if no GPU was named, or there are no experts.
        speed: Lower bounds on time; None if no GPU was named.
        stored: The stored weights of a checkpoint that is published quantized.
        measured: The same scenario, measured; None unless it was asked for.
        notes: Caveats for the reader, one sentence each.
        loaded_dtype: The dtype of weights that no quantization holds, such as `bfloat16`.
        confirmed_on: The GPU and the day on which runs of this kind of model were measured and
            compared with their estimates; None if none were.
    """

    model: str
    scenario: Scenario
    method: Method
    gpu: str
    figures: MemoryFigures
    context_bytes: int | None
    peaks: tuple[Peak, ...] = ()
    variants: Mapping[str, MemoryFigures] = field(default_factory=dict)
    fits: tuple[Fit, ...] = ()
    limits: Limits | None = None
    ranks: tuple[RankBytes, ...] = ()
    offload: Offload | None = None
    speed: SpeedBound | None = None
    stored: StoredWeights | None = None
    measured: Measurement | None = None
    notes: tuple[str, ...] = ()
    confirmed_on: str | None = None
    loaded_dtype: str | None = None

    @property
    def is_gpu_named(self) -> bool:
        """Whether the estimate is for one GPU, and not for all known ones."""
        return {fit.gpu for fit in self.fits} <= {self.gpu}

    @property
    def at_peak(self) -> Peak | None:
        """The moment at which the most memory is allocated; None if unknown."""
        return max(self.peaks, key=lambda peak: peak.above_weights_bytes, default=None)

    @property
    def fit(self) -> Fit | None:
        """Whether the run fits on the GPU of the figures; None if that GPU is not among `fits`."""
        return next((fit for fit in self._fits_as_run if fit.gpu == self.gpu), None)

    @property
    def fits_dequantized(self) -> tuple[Fit, ...]:
        """Whether the run fits on each GPU if its weights are dequantized there.

        Empty unless the checkpoint is published quantized and it is unknown how transformers loads
        it.
        """
        figures = self.variants.get("dequantized")
        is_open = self.stored is not None and self.stored.basis in (Basis.PUBLISHED, Basis.UNKNOWN)
        total_bytes = figures.total_device_bytes if figures is not None and is_open else None
        if total_bytes is None:
            return ()
        return tuple(
            replace(
                fit,
                num_gpus=1 if total_bytes <= fit.memory_bytes else None,
                fits=total_bytes <= fit.memory_bytes,
                headroom_bytes=fit.memory_bytes - total_bytes,
            )
            for fit in self._fits_as_run
        )

    @property
    def smallest_fit(self) -> Fit | None:
        """The GPU with the least memory on which the run fits; None if it fits on none."""
        fitting = (fit for fit in self._fits_as_run if fit.fits)
        return min(fitting, key=lambda fit: fit.memory_bytes, default=None)

    @property
    def smallest_fits(self) -> Mapping[Quantization, Fit | None]:
        """The known GPU with the least memory on which the run fits, by the storage of the weights.

        None where it fits on none of them alone. Storages of which nothing is known are left out,
        and all are if a GPU was named.
        """
        if self.is_gpu_named:
            return {}
        known = [fit for fit in self.fits if fit.fits is not None]
        return {
            quantization: min(
                (fit for fit in known if fit.fits and fit.quantization is quantization),
                key=lambda fit: fit.memory_bytes,
                default=None,
            )
            for quantization in dict.fromkeys(fit.quantization for fit in known)
        }

    @property
    def excess_over_measured_bytes(self) -> Mapping[str, int]:
        """Estimate minus measurement, by the figure's name, for figures that both contain."""
        if self.measured is None:
            return {}
        measured = self.measured.figures
        pairs = {
            **{
                each.name: (getattr(self.figures, each.name), getattr(measured, each.name))
                for each in fields(MemoryFigures)
            },
            "context_bytes": (self.context_bytes, self.measured.context_bytes),
        }
        return {
            name: estimated - found
            for name, (estimated, found) in pairs.items()
            if estimated is not None and found is not None
        }

    @property
    def _fits_as_run(self) -> tuple[Fit, ...]:
        return tuple(fit for fit in self.fits if fit.quantization == self.scenario.quantization)
