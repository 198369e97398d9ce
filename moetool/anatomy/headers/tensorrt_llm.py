"""Checkpoints of TensorRT-LLM, whose config.json and tensor names are unlike all others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# The matrices of a layer's experts are stacked under the names of its MLP, next to a router.
_ROUTER = re.compile(r"(^|\.)layers\.(\d+)\.mlp\.router\.")
_STACK = re.compile(r"((?:^|\.)layers\.(\d+)\.mlp)\.((?:fc|gate|proj)\.)")


def is_tensorrt_llm(config: Mapping[str, object]) -> bool:
    """Return whether a config.json is TensorRT-LLM's: it has an `architecture` and no `model_type`."""
    has_own_fields = any(isinstance(config.get(name), Mapping) for name in ("mapping", "moe"))
    return isinstance(config.get("architecture"), str) and has_own_fields


def name_experts(names: Iterable[str]) -> dict[str, str]:
    """Return names that show experts, for the tensors of experts, by the names in the files."""
    names = tuple(names)
    routed = {found[2] for name in names for found in [_ROUTER.search(name)] if found}
    return {
        name: _STACK.sub(r"\1.experts.\3", name)
        for name in names
        for found in [_STACK.search(name)]
        if found and found[2] in routed
    }


def read_routing_fields(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config.json with its facts about experts under the names that others use."""
    stated = config.get("moe")
    if not isinstance(stated, Mapping):
        return config
    return {
        **config,
        "num_experts": stated.get("num_experts"),
        "num_experts_per_tok": stated.get("top_k"),
    }
