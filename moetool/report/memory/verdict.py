"""State whether a model fits and, if not, what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.memory.words import word_gpu, word_variant
from moetool.wording import format_bytes

if TYPE_CHECKING:
    from moetool.memory.answers.on_gpus import Fit, Offload
    from moetool.memory.result import Estimate

_NOTHING = ""
_VARIANTS_OF_STORED = ("as_published", "dequantized")


def list_verdict(estimate: Estimate) -> Iterator[str]:
    """Yield sentences: whether it fits and, if not, what would make it fit.

    Without a GPU, they name the smallest one that it fits on.
    """
    if not estimate.is_gpu_named:
        yield from _list_smallest(estimate)
        return
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


def _list_smallest(estimate: Estimate) -> Iterator[str]:
    """Yield what it needs, and the smallest known GPU that it fits on in each storage of weights."""
    total, own = estimate.figures.total_device_bytes, estimate.scenario.quantization
    if total is None:
        yield from _list_unknown(estimate)
    else:
        smallest, packed = _word_smallest(estimate), _word_basis(estimate)
        packed = packed if smallest.startswith(" and") else packed.rstrip(",")
        yield f"{estimate.model} needs {format_bytes(total)}{packed}{smallest}."
    if _word_basis(estimate):
        yield from _list_dequantized(estimate)
    storages: dict[str, list[str]] = {}
    own_gpu = None if estimate.smallest_fit is None else estimate.smallest_fit.gpu
    for quantization, fit in estimate.smallest_fits.items():
        if quantization is not own:
            gpu = _NOTHING if fit is None else "the same" if fit.gpu == own_gpu else _word_one(fit)
            word = "unquantized" if quantization.value == "none" else f"in {quantization}"
            storages.setdefault(gpu, []).append(word)
    without = " and ".join(storages.pop(_NOTHING, ()))
    if storages:
        words = ", ".join(f"{gpu} {' and '.join(how)}" for gpu, how in storages.items())
        yield f"The smallest is {words}."
    if without and own_gpu is not None:
        yield f"No known GPU is enough alone {without}."


def _word_one(fit: Fit) -> str:
    return f"the {word_gpu(fit)}"


def _word_smallest(estimate: Estimate) -> str:
    smallest, fit = estimate.smallest_fit, estimate.fit
    if smallest is not None:
        return f" and fits on one {word_gpu(smallest)}, the smallest known GPU that can hold it"
    if fit is None or fit.fits is None:
        return ""
    if fit.num_gpus is None:
        return ": no known GPU is enough"
    return (
        f": no known GPU is enough alone, and {fit.num_gpus} × {fit.gpu} are, with "
        'device_map="auto"'
    )


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
    if not estimate.is_gpu_named:
        smallest = estimate.smallest_fit_dequantized
        words += "" if smallest is None else f" and fits on one {word_gpu(smallest)}"
        yield f"{words}."
        return
    fit = estimate.fit_dequantized
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
