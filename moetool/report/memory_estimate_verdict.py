"""Whether a model fits, and if it doesn't, what would make it fit: in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.memory_estimate_words import word_gpu
from moetool.report.numbers import format_bytes

if TYPE_CHECKING:
    from moetool.memory.result import Estimate, Fit, Offload


def list_verdict(estimate: Estimate) -> Iterator[str]:
    """Yield whether it fits, and if it doesn't, what would make it fit: a sentence each."""
    total, fit = estimate.figures.total_device_bytes, estimate.fit
    if total is None:
        weights = format_bytes(estimate.figures.weights_bytes)
        yield f"What {estimate.model} needs is unknown. Its weights alone take {weights}."
    elif fit is None or fit.fits is None:
        yield f"{estimate.model} needs {format_bytes(total)} on a GPU."
    else:
        does = "fits" if fit.fits else "doesn't fit"
        words = f"{estimate.model} needs {format_bytes(total)} and {does} on 1 × {word_gpu(fit)}"
        if fit.headroom_bytes is not None:
            rest = "to spare" if fit.fits else "too much"
            words += f": {format_bytes(abs(fit.headroom_bytes))} {rest}"
        yield f"{words}."
    if fit is not None and fit.fits is False:
        yield from _list_ways(estimate, fit)
    smallest = estimate.smallest_fit
    if smallest is not None and smallest.gpu != estimate.gpu:
        yield f"The smallest GPU of those listed that holds it is the {word_gpu(smallest)}."


def _list_ways(estimate: Estimate, fit: Fit) -> Iterator[str]:
    if fit.num_gpus is not None and fit.num_gpus > 1:
        yield f'{fit.num_gpus} × {fit.gpu} hold it with device_map="auto".'
    others = [
        other.quantization.value
        for other in estimate.fits
        if other.gpu == fit.gpu and other.quantization != fit.quantization and other.fits
    ]
    if others:
        yield f"On 1 × {fit.gpu} it fits in {' or '.join(others)}."
    if estimate.offload is not None:
        yield from _list_offloading(estimate.offload)


def _list_offloading(offload: Offload) -> Iterator[str]:
    where, layers = None, 0
    if offload.fits:
        where, layers = "in the host's memory", offload.num_offloaded_layers
    elif offload.fits_computed_on_host:
        where, layers = "computed on the host, as by llama.cpp", offload.num_host_computed_layers
    if layers:
        yield (
            f"With the routed experts of {layers} of {offload.num_moe_layers} layers {where}, "
            f"1 × {offload.gpu} is enough."
        )
