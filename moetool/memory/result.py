"""Results of a memory estimate. Reports show these values unchanged.

All sizes are in bytes. Unknown figures are None, and the notes say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, get_type_hints

from moetool.memory.answers import columns
from moetool.memory.answers.figures import (
    Basis,
    MemoryFigures,
    Method,
    NamedFigures,
    Peak,
    Phase,
    StoredWeights,
)
from moetool.memory.answers.layout import Layout
from moetool.memory.answers.on_gpus import (
    Fit,
    Limits,
    Offload,
    RankBytes,
    SpeedBound,
    find_smallest,
)
from moetool.memory.answers.reported import ReportedWeights
from moetool.memory.assisting.assistant_memory import AssistantMemory
from moetool.memory.measured.measurement import Measurement
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import Serving
from moetool.memory.training.training_memory import TrainingMemory
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.quantizing.kinds import Quantization
from moetool.wording import format_bytes


@dataclass(frozen=True)
class Estimate(NamedFigures, Tabular):
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
        serving: How an engine would serve the model; None if none was named.
        stored: The stored weights of a checkpoint that is published quantized.
        layouts: The run on several GPUs that were named, for each way of sharing; else empty.
        measured: The same scenario, measured; None unless it was asked for.
        notes: Caveats for the reader, one sentence each.
        loaded_dtype: The dtype of weights that no quantization holds, such as `bfloat16`.
        is_gpu_named: Whether the estimate is for one GPU, and not for all known ones.
        confirmed_on: The GPU and the day on which runs of this kind of model were measured and
            compared with their estimates; None if none were.
        training: The parts of a step of training; None for other tasks.
        assistant: The part of an assistant, which the figures include; None without one.
        reported: A lower bound on the weights of a system known from reports; None for models.
        host_cache_bytes: The part of an offloaded cache in the host's memory; None for others.
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
    serving: Serving | None = None
    stored: StoredWeights | None = None
    measured: Measurement | None = None
    notes: tuple[str, ...] = ()
    confirmed_on: str | None = None
    loaded_dtype: str | None = None
    is_gpu_named: bool = False
    layouts: tuple[Layout, ...] = ()
    training: TrainingMemory | None = None
    host_cache_bytes: int | None = None
    assistant: AssistantMemory | None = None
    reported: ReportedWeights | None = None

    _SHOWN: ClassVar[tuple[str, ...]] = (
        *("batch_size", "num_prompt_tokens", "num_new_tokens", "quantization", *columns.FIGURES),
        *("gpu", "does_fit", "headroom_bytes"),
    )

    def __repr__(self) -> str:
        scenario = self.scenario
        tokens = f"{scenario.batch_size:,} × {scenario.num_prompt_tokens:,}"
        if scenario.num_new_tokens:
            tokens += f" + {scenario.num_new_tokens:,}"
        peak = self.peak_allocated_bytes
        words = "peak unknown" if peak is None else f"peak {format_bytes(peak)} allocated"
        fit = self.fit
        if fit is not None and fit.fits is not None and fit.headroom_bytes is not None:
            headroom = format_bytes(abs(fit.headroom_bytes))
            verdict = f"fits, {headroom} left" if fit.fits else f"doesn't fit, short by {headroom}"
            words += f"; {fit.gpu}: {verdict}"
        return f"<Estimate {printable(self.model)}, {tokens} tokens: {words}>"

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
    def fit_dequantized(self) -> Fit | None:
        """The fit of dequantized weights on the GPU of the figures; None if unknown."""
        return next((fit for fit in self.fits_dequantized if fit.gpu == self.gpu), None)

    @property
    def fits_alone(self) -> bool | None:
        """Whether the run fits on the named GPU, or else on any known one; None if unknown."""
        if self.fit is None or self.fit.fits is None:
            return None
        return self.fit.fits if self.is_gpu_named else self.smallest_fit is not None

    @property
    def smallest_fit(self) -> Fit | None:
        """The GPU with the least memory on which the run fits; None if it fits on none."""
        return find_smallest(self._fits_as_run)

    @property
    def smallest_fit_dequantized(self) -> Fit | None:
        """The GPU with the least memory for dequantized weights; None if there is none."""
        return find_smallest(self.fits_dequantized)

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
            quantization: find_smallest(fit for fit in known if fit.quantization is quantization)
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

    @property
    def prefill_peak_allocated_bytes(self) -> int | None:
        """The most that is allocated while prompts are read; None if unknown."""
        return self._find_peak_bytes(Phase.PREFILL)

    @property
    def decode_peak_allocated_bytes(self) -> int | None:
        """The most that is allocated while tokens are written; None if unknown, or if none are."""
        return self._find_peak_bytes(Phase.DECODE)

    @property
    def stored_as(self) -> str | None:
        """The quantization of a checkpoint that is published quantized; else None."""
        return self.stored.method if self.stored else None

    @property
    def weights_basis(self) -> Basis | None:
        """The bytes of its weights that the figures rest on; None for all other checkpoints."""
        return self.stored.basis if self.stored else None

    @property
    def does_fit(self) -> bool | None:
        """Whether it fits on one `gpu`; None if unknown."""
        return self.fit.fits if self.fit else None

    @property
    def headroom_bytes(self) -> int | None:
        """Memory of `gpu` to spare; negative if it is short. None if unknown."""
        return self.fit.headroom_bytes if self.fit else None

    @property
    def smallest_gpu(self) -> str | None:
        """The known GPU with the least memory that it fits on; None if unknown or for one GPU."""
        smallest = None if self.is_gpu_named else self.smallest_fit
        return smallest.gpu if smallest else None

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        value = {
            "model": self.model,
            "scenario": self.scenario,
            "method": self.method,
            **{name: getattr(self, name) for name in columns.FIGURES},
            "at_peak": columns.describe_peak(self.at_peak) if self.at_peak else None,
            "peaks": [columns.describe_peak(peak) for peak in self.peaks],
            "variants": self.variants,
            "fits": self.fits,
            "notes": self.notes,
            "gpu": self.gpu,
            "stored": self.stored,
            "limits": self.limits,
            "ranks": self.ranks,
            "offload": self.offload,
            "speed": self.speed,
            "measured": columns.describe_measurement(self.measured) if self.measured else None,
            "fits_dequantized": self.fits_dequantized,
            "confirmed_on": self.confirmed_on,
            **{name: getattr(self, name) for name in columns.PEAK_OF_A_PHASE.values()},
            "stored_as": self.stored_as,
            "weights_basis": self.weights_basis,
            "loaded_dtype": self.loaded_dtype,
            "smallest_fits": self.smallest_fits,
            "smallest_gpu": self.smallest_gpu,
            "does_fit": self.does_fit,
            "headroom_bytes": self.headroom_bytes,
            "host_cache_bytes": self.host_cache_bytes,
            "layouts": self.layouts,
            "serving": self.serving,
            "training": self.training,
            "assistant": self.assistant,
            "reported": self.reported,
        }
        plain: dict[str, Any] = make_plain(value)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the row, in order, each with the type of its values."""
        hints = get_type_hints(Scenario)
        return {
            "model": str,
            **{
                name: kind
                for name, kind in hints.items()
                if name
                not in (*columns.LAST_OPTIONS, *columns.OF_TRAINING, *columns.LATEST_OPTIONS)
            },
            "method": str,
            "gpu": str,
            **dict.fromkeys(columns.FIGURES, int | None),
            **{f"at_peak_{name}": kind for name, kind in columns.OF_A_PEAK.items()},
            **dict.fromkeys(columns.PEAK_OF_A_PHASE.values(), int | None),
            **{f"measured_{name}": int | None for name in columns.FIGURES},
            "stored_as": str | None,
            "weights_basis": str | None,
            "loaded_dtype": str | None,
            "smallest_gpu": str | None,
            "does_fit": bool | None,
            "headroom_bytes": int | None,
            **{name: hints[name] for name in columns.LAST_OPTIONS},
            "host_cache_bytes": int | None,
            **{name: hints[name] for name in columns.OF_TRAINING},
            **{f"at_peak_{name}": int | None for name in columns.OF_A_TRAINING_PEAK},
            **{name: hints[name] for name in columns.LATEST_OPTIONS},
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row, without the lists: fits, ranks and notes. Values are plain."""
        values = {
            **vars(self.scenario),
            **{f"at_peak_{name}": getattr(self.at_peak, name, None) for name in columns.AT_PEAK},
            **{f"measured_{name}": getattr(self.measured, name, None) for name in columns.FIGURES},
        }
        row = {
            name: values[name] if name in values else getattr(self, name)
            for name in self.column_types()
        }
        return [make_plain(row)]

    def _find_peak_bytes(self, phase: Phase) -> int | None:
        return next((peak.allocated_bytes for peak in self.peaks if peak.phase is phase), None)
