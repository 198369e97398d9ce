"""The parts of a GPU's memory in engines that keep the cache in a pool: vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from moetool.errors import InputError
from moetool.memory.serving.answer import Capacity, ServedCache
from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.question import Parts, Question
from moetool.memory.serving.weights import count_held_bytes

_FP8_BYTES = 1
_UNCONFIRMED = "Not confirmed: nothing here runs {engine}; its rules were read in its source."
_LATENT_COPIES = (
    "Not confirmed: {engine} may keep copies of kv_b_proj for latent attention in addition."
)
_PACKED = (
    "Not confirmed: how much {engine}'s kernels for mxfp4 add when they reorder weights and scales "
    "is not known here."
)


class CountCapacity(Protocol):
    """Counts what a pool of an engine holds."""

    def __call__(
        self, geometry: CacheGeometry, pool_bytes: int, *, token_bytes_per_layer: int, length: int
    ) -> Capacity:
        """Return what it holds; see `vllm.count_capacity`."""


def write_flags(values: Mapping[str, object]) -> str:
    """Return flags with their values; without those whose value is None or False.

    Args:
        values: By flag; True for a flag without a value.
    """
    return " ".join(
        flag if value is True else f"{flag} {value}"
        for flag, value in values.items()
        if value is not None and value is not False
    )


def list_pool_parts(question: Question, count_capacity: CountCapacity) -> Parts:
    """Return the sizes that the engine's rules give."""
    engine, geometry = question.options.engine, question.geometry
    notes = [_UNCONFIRMED.format(engine=engine)]
    weights_bytes = None
    try:
        weights_bytes = count_held_bytes(question)
    except InputError as error:
        notes.insert(0, f"The weights on each GPU are unknown: {error.message}")
    if weights_bytes is not None and question.published_method == "mxfp4":
        notes.append(_PACKED.format(engine=engine))
    if geometry is None:
        return Parts(weights_bytes, notes=tuple(notes))
    if geometry.is_latent:
        notes.append(_LATENT_COPIES.format(engine=engine))
    is_fp8 = question.options.kv_cache_dtype is ServedCache.FP8
    value_bytes = _FP8_BYTES if is_fp8 else question.model.skeleton.dtype.itemsize
    layer_bytes = geometry.count_values(num_gpus=question.deployment.tensor) * value_bytes

    def fill(num_bytes: int) -> Capacity:
        return count_capacity(
            geometry,
            max(num_bytes - (weights_bytes or 0), 0),
            token_bytes_per_layer=layer_bytes,
            length=question.length,
        )

    return Parts(
        weights_bytes,
        layer_bytes * geometry.num_layers,
        None if weights_bytes is None else fill,
        notes=tuple(notes),
    )
