"""State whether a model fits and, if not, what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.memory.words import word_gpu, word_variant
from moetool.report.text.numbers import format_bytes

if TYPE_CHECKING:
    from moetool.memory.on_gpus import Fit, Offload
    from moetool.memory.result import Estimate

_VARIANTS_OF_STORED = ("as_published", "dequantized")


def list_verdict(estimate: Estimate) -> Iterator[str]:
    """Yield sentences: whether it fits and, if not, what would make it fit."""
    total, fit = estimate.figures.total_device_bytes, estimate.fit
    packed = _word_basis(estimate)
    if total is None:
        yield from _list_unknown(estimate)
    elif fit is None or fit.fits is None:
        yield f"{estimate.model} needs {format_bytes(total)} on a GPU{packed.rstrip(',')}."
    else:
        does = "fits" if fit.fits else "doesn't fit"
        words = f"{estimate.model} needs {format_bytes(total)}{packed} and {does} on 1 × {word_gpu(fit)}"
        if fit.headroom_bytes is not None:
            size = format_bytes(abs(fit.headroom_bytes))
            words += f": {size} to spare" if fit.fits else f": short by {size}"
        yield f"{words}."
    if packed:
        yield from _list_dequantized(estimate)
    if fit is not None and fit.fits is False:
        yield from _list_ways(estimate, fit)
    smallest = estimate.smallest_fit
    if smallest is not None and smallest.gpu != estimate.gpu:
        yield f"The smallest listed GPU that it fits on is the {word_gpu(smallest)}."


def _word_basis(estimate: Estimate) -> str:
    """Return how quantized weights are counted, if not as transformers loads them."""
    stored = estimate.stored
    if stored is None or stored.basis.value != "as-published":
        return ""
    return f" with its weights packed as published, in {stored.method.partition(',')[0]},"


def _list_unknown(estimate: Estimate) -> Iterator[str]:
    """Yield that the total is unknown, why, and what is known instead."""
    stored, weights_bytes = estimate.stored, estimate.figures.weights_bytes
    words = f"The memory that {estimate.model} needs is unknown"
    words += f": {stored.reason}" if stored is not None and stored.reason is not None else "."
    if weights_bytes is not None:
        words += f" Its weights alone take {format_bytes(weights_bytes)}."
    yield words
    known = [
        f"{format_bytes(figures.total_device_bytes)} {word_variant(name)}"
        for name, figures in estimate.variants.items()
        if name in _VARIANTS_OF_STORED and figures.total_device_bytes is not None
    ]
    if known:
        yield f"It would need {' or '.join(known)}."


def _list_dequantized(estimate: Estimate) -> Iterator[str]:
    """Yield what is needed with dequantized weights, and whether that fits."""
    figures = estimate.variants.get("dequantized")
    if figures is None or figures.total_device_bytes is None:
        return
    words = f"With its weights dequantized it needs {format_bytes(figures.total_device_bytes)}"
    fit = next((fit for fit in estimate.fits_dequantized if fit.gpu == estimate.gpu), None)
    if fit is not None:
        words += " and fits" if fit.fits else " and doesn't fit"
    yield f"{words}."


def _list_ways(estimate: Estimate, fit: Fit) -> Iterator[str]:
    if fit.num_gpus is not None and fit.num_gpus > 1:
        yield f'It fits on {fit.num_gpus} × {fit.gpu} with device_map="auto".'
    others = [
        other.quantization.value
        for other in estimate.fits
        if other.gpu == fit.gpu and other.quantization != fit.quantization and other.fits
    ]
    if others:
        yield f"On 1 × {fit.gpu} it fits in {' or '.join(others)}."
    if estimate.offload is not None:
        yield from _list_offloading(estimate.offload, fit.gpu)


def _list_offloading(offload: Offload, gpu: str) -> Iterator[str]:
    where, layers = None, 0
    if offload.fits:
        where, layers = "in host memory", offload.num_offloaded_layers
    elif offload.fits_computed_on_host:
        where, layers = "computed on the host, as llama.cpp does", offload.num_host_computed_layers
    if layers:
        yield (
            f"With the routed experts of {layers} of {offload.num_moe_layers} layers {where}, "
            f"1 × {gpu} is enough."
        )
