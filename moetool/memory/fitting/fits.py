"""On which GPUs a run fits, and on how many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from moetool.catalogue.gpus import Gpu
from moetool.memory.result import Fit
from moetool.quantized.kinds import Quantization


def list_fits(
    total_by_quantization: Mapping[Quantization, int | None],
    gpus: Iterable[Gpu],
    *,
    count_gpus: Callable[[Quantization, Gpu], int | None] | None = None,
    find_total_within: Callable[[Quantization, Gpu], int | None] | None = None,
) -> tuple[Fit, ...]:
    """Return whether a run fits on each GPU under each quantization.

    The memory is the GPU's own in `Gpu.memory_bytes`; of what its vendor advertises, programs see
    some hundred MiB less.

    Args:
        total_by_quantization: What the run takes on a device that has all it asks for; None if
            unknown.
        gpus: The GPUs.
        count_gpus: Returns how many of a GPU are needed where one is not enough; None if that
            isn't asked.
        find_total_within: Returns what the run takes on a GPU that has less than that, None if it
            doesn't run through there; None if no run does.

    Returns:
        By growing memory, then by id, quantizations in the order they were given.
    """
    return tuple(
        _fit(gpu, quantization, total_bytes, count_gpus, find_total_within)
        for gpu in sorted(gpus, key=lambda gpu: (gpu.memory_bytes, gpu.id))
        for quantization, total_bytes in total_by_quantization.items()
    )


def _fit(
    gpu: Gpu,
    quantization: Quantization,
    total_bytes: int | None,
    count_gpus: Callable[[Quantization, Gpu], int | None] | None,
    find_total_within: Callable[[Quantization, Gpu], int | None] | None,
) -> Fit:
    if total_bytes is None:
        return Fit(gpu.id, gpu.memory_bytes, quantization, None, None, None)
    if total_bytes > gpu.memory_bytes and find_total_within is not None:
        within_bytes = find_total_within(quantization, gpu)
        total_bytes = total_bytes if within_bytes is None else within_bytes
    headroom_bytes = gpu.memory_bytes - total_bytes
    num_gpus: int | None = 1
    if headroom_bytes < 0:
        num_gpus = count_gpus(quantization, gpu) if count_gpus else None
    return Fit(
        gpu=gpu.id,
        memory_bytes=gpu.memory_bytes,
        quantization=quantization,
        num_gpus=num_gpus,
        fits=headroom_bytes >= 0,
        headroom_bytes=headroom_bytes,
    )
