"""Skeletons of tiny and deeper families, and FLOPs counted with and without the shortcut."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moetool.simulation.flops.flop_counter import FlopCounter
from moetool.simulation.meta.generation import SimulatedGeneration
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.families.tiny.configs import build_config
from tests.families.tiny.families import find_family

# They read their positions unless they are given a cache.
LOOK_INTO_POSITIONS = ("gemma4",)

# The name of the number of layers, and the tiny families' number.
_DEPTH, _NUM_LAYERS = "num_hidden_layers", 4


def build_skeleton_of(config: PreTrainedConfig, model_class: str | None = None) -> PreTrainedModel:
    """Return the model of a configuration on the meta device."""
    with torch.device("meta"):
        model: PreTrainedModel = (
            AutoModelForCausalLM.from_config(config)
            if model_class is None
            else getattr(transformers, model_class)(config)
        )
    return model


def build_family_skeleton(name: str, **overrides: Any) -> PreTrainedModel:
    """Return a tiny family's skeleton, with the overrides of `build_config`."""
    return build_skeleton_of(build_config(name, **overrides), find_family(name).model_class)


# Their two stacks have numbers of layers under other names, and two layers in the tiny families.
_DEEPER_STACKS: dict[str, dict[str, Any]] = {
    "nllb-moe": {"encoder_layers": 6, "decoder_layers": 6},
    "switch_transformers": {
        "num_layers": 6,
        "num_decoder_layers": 6,
        "num_sparse_encoder_layers": 3,
        "num_sparse_decoder_layers": 3,
    },
}


def deepen(name: str) -> dict[str, Any]:
    """Return the overrides that make a tiny family deeper; none if its depth isn't known."""
    if name in _DEEPER_STACKS:
        return _DEEPER_STACKS[name]
    config = build_config(name)
    text_names = [inner for inner in config.sub_configs if inner.startswith("text")]
    if text_names:
        deeper = _double(config.get_text_config())
        return {text_names[0]: deeper} if deeper else {}
    return _double(config)


def _double(config: PreTrainedConfig) -> dict[str, Any]:
    if vars(config).get(_DEPTH) != _NUM_LAYERS:
        return {}
    by_layer = {
        field: list(value) * 2
        for field, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == _NUM_LAYERS
    }
    return {_DEPTH: 2 * _NUM_LAYERS, **by_layer}


@dataclass(frozen=True)
class Steps:
    """Results of a prompt and the token after it.

    Attributes:
        flops: Of the prompt, and of the token if there is one.
        num_repeated: Calls of layers that did not run.
        uncounted: Names of the operations that no formula is for.
        kept: What the cache holds at the end: shapes and dtypes, in the structure it has.
    """

    flops: list[int]
    num_repeated: int
    uncounted: set[str]
    kept: object


def count_steps(
    skeleton: PreTrainedModel, *, num_prompt_tokens: int, is_each_layer_run: bool
) -> Steps:
    """Return the FLOPs of a prompt and of the token after it, and other results."""
    counter = FlopCounter()
    layers = RepeatedLayers(skeleton, observers=[counter])
    is_cache_given = skeleton.config.model_type in LOOK_INTO_POSITIONS
    generation = SimulatedGeneration(skeleton, is_cache_given=is_cache_given)
    with generation.ready(), nullcontext() if is_each_layer_run else layers, counter:
        generation.prefill(num_prompt_tokens=num_prompt_tokens)
        flops = [counter.count.total]
        if generation.can_decode:
            generation.decode()
            flops.append(counter.count.total - flops[0])
    uncounted = {str(operation) for operation in counter.uncounted}
    kept = _describe(list(vars(generation.cache).items()) if generation.cache else None)
    return Steps(flops, layers.num_repeated, uncounted, kept)


def _describe(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {name: _describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if hasattr(value, "update"):  # the slot of a layer
        return (type(value), _describe(vars(value)))
    return value if isinstance(value, int | str | torch.dtype) else type(value)
