"""Refuse quantized caches for models that transformers refuses them for."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedModel, __version__, cache_utils
from transformers.cache_utils import DynamicLayer

from moetool.errors import UsageError
from moetool.memory.scenario import CacheDtype, Scenario

_NEAREST = "Choose --cache dynamic, or --cache offloaded to keep it in the host's memory."


def refuse_quantized_cache(skeleton: PreTrainedModel, scenario: Scenario, *, model: str) -> None:
    """Refuse a quantized cache for a model whose layers transformers doesn't quantize.

    Raises:
        UsageError: transformers refuses it, or this version of it has no cache in fp8.
    """
    if scenario.cache_dtype is CacheDtype.FP8 and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        raise UsageError(
            f"transformers {__version__} has no cache in fp8.",
            hint="Install transformers 5.24 or later, or choose --cache-dtype int8.",
        )
    model_class: Any = type(skeleton)
    supports = model_class._supports_default_dynamic_cache()
    if skeleton.config.is_encoder_decoder or not supports:
        raise UsageError(f"transformers has no quantized cache for {model}.", hint=_NEAREST)
    layers = DynamicCache(config=skeleton.config.get_text_config(decoder=True)).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if others:
        raise UsageError(
            f"transformers quantizes only caches of full attention, and that of {model} has layers of "
            f"the kind {others[0]}.",
            hint=_NEAREST,
        )
