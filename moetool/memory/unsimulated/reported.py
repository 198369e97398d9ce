"""The estimate of a system that is known from reports: its weights, as far as they are reported."""

from __future__ import annotations

from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import ReportedSystem
from moetool.errors import UsageError
from moetool.memory.answers.figures import MemoryFigures, Method
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.answers.reported import ReportedWeights
from moetool.memory.result import Estimate
from moetool.memory.scenario import Dtype, Scenario
from moetool.quantizing.kinds import Quantization

# Codes alone: the scales of quantized weights come on top.
_BITS = {
    Quantization.NONE: 16,
    Quantization.NF4: 4,
    Quantization.FP4: 4,
    Quantization.INT8: 8,
}
_FLOAT32_BITS = 32


def refuse_for_reported(system: ReportedSystem, *, options: tuple[str, ...]) -> None:
    """Refuse what needs a model that can be run.

    Raises:
        UsageError: There is such an option.
    """
    if options:
        raise UsageError(
            f"{system.title} is known from reports alone, and {options[0]} needs a model to run.",
            hint=f"Leave out {options[0]} to see what follows from the reports.",
        )


def estimate_reported(
    name: str, system: ReportedSystem, scenario: Scenario, *, gpu: Gpu | None
) -> Estimate:
    """Return a lower bound on the weights, and null for all else.

    Args:
        name: The name it was asked for by.
        system: The reported figures.
        scenario: The run, of which only the dtype or the quantization of weights matters.
        gpu: The GPU that was named; None if none was.
    """
    bits = _BITS[scenario.quantization]
    if scenario.quantization is Quantization.NONE and scenario.dtype == Dtype.FLOAT32:
        bits = _FLOAT32_BITS
    least = system.total_params_least
    weights_bytes = None if least is None else least * bits // 8
    is_too_large = (
        gpu is not None and weights_bytes is not None and weights_bytes > gpu.memory_bytes
    )
    fits: tuple[Fit, ...] = ()
    if gpu is not None:
        fit = Fit(
            gpu=gpu.id,
            memory_bytes=gpu.memory_bytes,
            quantization=scenario.quantization,
            num_gpus=None,
            fits=False if is_too_large else None,
            headroom_bytes=None,
        )
        fits = (fit,)
    return Estimate(
        model=name,
        scenario=scenario,
        method=Method.REPORTED,
        gpu=gpu.id if gpu else "",
        is_gpu_named=gpu is not None,
        figures=MemoryFigures(None, None, None, None, None),
        context_bytes=None,
        fits=fits,
        notes=_list_notes(system, bits=bits),
        reported=ReportedWeights(
            title=system.title,
            source=system.source,
            total=system.total,
            total_params_least=least,
            total_params_most=system.total_params_most,
            active=system.active,
            experts=system.experts,
            bits_per_parameter=bits,
            weights_bytes_least=weights_bytes,
            num_gpus_least=None
            if weights_bytes is None or gpu is None
            else -(-weights_bytes // gpu.memory_bytes),
        ),
    )


def _list_notes(system: ReportedSystem, *, bits: int) -> tuple[str, ...]:
    remarks = (system.notes,) if system.notes else ()
    if system.total_params_least is None:
        return (
            *remarks,
            "The size of its weights is unknown: nothing is reported of the number of its parameters.",
        )
    return (
        *remarks,
        f"The bound takes the least of the reported parameters, at {bits} bits each; how the weights "
        "are really stored is unknown.",
        "Cache, activations and all else that a run needs are unknown: they follow from layers and "
        "heads, which are not public.",
    )
