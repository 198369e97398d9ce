"""Have `generate` use a cache other than its own dynamic or static one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import PreTrainedModel

from moetool.anatomy.caches import CACHE_NAMES
from moetool.simulation.caches.kinds import CacheKind, CachePlan
from moetool.simulation.caches.offloaded import HostCopies, SideStream, offload
from moetool.simulation.caches.quantized_layers import make_quantized_cache
from moetool.simulation.meta.generation import CantSimulate

# `generate` makes a static cache as long as the longest that the model has had.
_LONGEST_BEFORE = "_previous_max_cache_length"


@contextmanager
def preparing_cache(
    skeleton: PreTrainedModel, plan: CachePlan, stream: SideStream, *, num_residual: int = 0
) -> Iterator[None]:
    """Replace the cache that `generate` prepares by the one of a plan, as in the model's first run.

    Args:
        skeleton: The model. It is left as it was.
        plan: The cache.
        stream: The stream on which an offloaded cache fetches layers.
        num_residual: The last tokens of the prompt that a quantized cache keeps in full precision.

    Raises:
        CantSimulate: The model makes its cache by itself, or transformers refuses its layers.
    """
    vars(skeleton).pop(_LONGEST_BEFORE, None)
    if plan.kind not in (CacheKind.QUANTIZED, CacheKind.OFFLOADED, CacheKind.OFFLOADED_STATIC):
        yield
        return
    model: Any = skeleton
    prepare = model._prepare_cache_for_generation

    @functools.wraps(prepare)
    def prepare_planned(generation_config: Any, model_kwargs: dict[str, Any], *rest: Any) -> None:
        prepare(generation_config, model_kwargs, *rest)
        name = next((name for name in CACHE_NAMES if model_kwargs.get(name) is not None), None)
        if name is None:
            raise CantSimulate("its class makes its own cache, which can't be exchanged")
        if plan.is_offloaded:
            offload(model_kwargs[name], stream)
            return
        assert plan.dtype is not None
        try:
            config = skeleton.config.get_text_config(decoder=True)
            model_kwargs[name] = make_quantized_cache(config, plan.dtype, num_residual=num_residual)
        except ValueError as error:
            raise CantSimulate(f"transformers refuses its quantized cache: {error}") from error

    model._prepare_cache_for_generation = prepare_planned
    try:
        with HostCopies() if plan.is_offloaded else nullcontext():
            yield
    finally:
        del model._prepare_cache_for_generation
