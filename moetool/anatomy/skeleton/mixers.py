"""Mixers, by which the tokens of a layer see each other: attention, or something linear."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import nn

from moetool.anatomy.components import Component
from moetool.anatomy.config_fields import find_num_heads, read_count
from moetool.anatomy.routing.moe_layers import find_layer_number
from moetool.anatomy.routing.rules import RoutingRule
from moetool.anatomy.routing.walk import walk_modules
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton


class MixerKind(StrEnum):
    """A way to mix tokens.

    Attributes:
        MHA: Attention in which every head has its own keys and values.
        GQA: Attention in which groups of heads share keys and values.
        MQA: Attention in which all heads share them.
        LATENT: Attention whose keys and values are expanded from one latent vector (MLA).
        LINEAR: Linear attention or a delta rule, with a state of fixed size.
        MAMBA: A state-space model.
        CONVOLUTION: A short convolution.
        OTHER: Attention whose heads could not be counted.
    """

    MHA = "multi-head attention"
    GQA = "grouped-query attention"
    MQA = "multi-query attention"
    LATENT = "latent attention"
    LINEAR = "linear attention"
    MAMBA = "Mamba"
    CONVOLUTION = "convolution"
    OTHER = "attention"


_CLASSES = (
    (MixerKind.MAMBA, re.compile(r"mamba|ssm", re.IGNORECASE)),
    (MixerKind.LINEAR, re.compile(r"delta|linearattention|lightning|rwkv", re.IGNORECASE)),
    (MixerKind.CONVOLUTION, re.compile(r"conv", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Mixer:
    """Layers that mix tokens in the same way.

    Attributes:
        kind: The way.
        num_layers: Mixers of this kind and these sizes.
        num_heads: Query heads; None where there are none, or their number is unknown.
        num_kv_heads: Heads of keys and values; None for latent and linear attention.
        head_dim: Width of a head; None if unknown.
        sliding_window: Tokens that a token sees; None for all.
        is_sparse: Whether an indexer chooses the tokens that a token sees.
    """

    kind: MixerKind
    num_layers: int
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    sliding_window: int | None
    is_sparse: bool


def list_mixers(skeleton: RoutedSkeleton) -> tuple[Mixer, ...]:
    """Return the mixers of a model's text layers, alike ones counted together."""
    config = skeleton.model.config.get_text_config()
    counts: Counter[Mixer] = Counter()
    for path, module in _find_mixers(skeleton):
        counts[_describe(path, module, config)] += 1
    main = [mixer for mixer in counts if mixer.kind is not MixerKind.CONVOLUTION]
    # Short convolutions next to attention are parts of it.
    are_parts = main and sum(counts[mixer] for mixer in main) >= sum(
        count for mixer, count in counts.items() if mixer not in main
    )
    return tuple(
        Mixer(**{**vars(mixer), "num_layers": count})
        for mixer, count in counts.items()
        if mixer in main or not are_parts or _has_own_layers(config)
    )


def _has_own_layers(config: Any) -> bool:
    return "conv" in (getattr(config, "layer_types", None) or ())


def _find_mixers(skeleton: RoutedSkeleton) -> list[tuple[str, nn.Module]]:
    """Return the outermost modules all of whose parameters belong to mixers."""
    kept: list[tuple[str, nn.Module]] = []
    # There may be thousands of modules in them, and there is nothing to look for.
    experts = {
        layer.experts_path
        for layer in skeleton.layers
        if layer.rule in (RoutingRule.SEPARATE_EXPERTS, RoutingRule.ROUTER_CHOICE)
    }
    for path, module in walk_modules(skeleton.model, closed=experts):
        if any(path.startswith(f"{outer}.") for outer, _ in kept[-1:]) or path in experts:
            continue
        if find_layer_number(path) is None or isinstance(module, nn.ModuleList):
            continue
        components = _list_components(path, module, skeleton, experts=experts)
        # JetMoE's attention holds experts as well.
        parts = {Component.MIXER, Component.ROUTED_EXPERTS, Component.ROUTER, Component.OTHER}
        if Component.MIXER in components and components <= parts:
            kept.append((path, module))
    return kept


def _list_components(
    path: str, module: nn.Module, skeleton: RoutedSkeleton, *, experts: Collection[str]
) -> set[Component]:
    """Return the components of a module's parameters; of separate experts, that of the first one."""
    components: set[Component] = set()
    for inner_path, inner in walk_modules(module, path=path, closed=experts):
        is_experts = inner_path in experts
        names = [name for name, _ in inner.named_parameters(recurse=False)]
        if is_experts:
            names = [name for name, _ in itertools.islice(inner.named_parameters(), 1)]
        components.update(
            skeleton.placement.place(f"{inner_path}.{name}").component for name in names
        )
    return components


def _describe(path: str, module: nn.Module, config: Any) -> Mixer:
    is_latent = read_count(module, "kv_lora_rank") is not None
    layer_type = _read_layer_type(path, module, config)
    kind = next((kind for kind, words in _CLASSES if words.search(type(module).__name__)), None)
    if is_latent:
        # KimiLinearAttention is latent attention in a model with linear attention.
        kind = None
    elif kind is None and layer_type == "linear_attention":
        kind = MixerKind.LINEAR
    if kind is not None:
        return Mixer(kind, 1, read_count(module, "num_heads"), None, None, None, is_sparse=False)
    num_heads = find_num_heads(module) or find_num_heads(config)
    head_dim = read_count(module, "qk_head_dim", "head_dim", "key_value_proj_dim")
    num_kv_heads = None if is_latent or not num_heads else _count_kv_heads(module, num_heads)
    return Mixer(
        kind=MixerKind.LATENT if is_latent else _name_by_heads(num_heads, num_kv_heads),
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=_find_window(module, layer_type, config),
        is_sparse=any(name.endswith("indexer") for name, _ in walk_modules(module))
        or bool(layer_type and "sparse" in layer_type),
    )


def _count_kv_heads(module: nn.Module, num_heads: int) -> int | None:
    """Return how many key heads attention has, by its group size or the widths of its projections."""
    groups = read_count(module, "num_key_value_groups")
    if groups is not None:
        return num_heads // groups
    widths = [
        child.weight.shape[0]
        for word in ("q", "k")
        for name, child in module.named_children()
        if name in (word, f"{word}_proj") and isinstance(child, nn.Linear)
    ]
    return num_heads * widths[1] // widths[0] if len(widths) == len("qk") and widths[0] else None


def _name_by_heads(num_heads: int | None, num_kv_heads: int | None) -> MixerKind:
    if num_heads is None or num_kv_heads is None:
        return MixerKind.OTHER
    if num_kv_heads == num_heads:
        return MixerKind.MHA
    return MixerKind.MQA if num_kv_heads == 1 else MixerKind.GQA


def _find_window(module: nn.Module, layer_type: str | None, config: Any) -> int | None:
    own = getattr(module, "sliding_window", None)
    if getattr(module, "is_sliding", True) is False:
        return None
    if isinstance(own, int) and not isinstance(own, bool) and own > 0:
        return own
    if layer_type is not None and "chunked" in layer_type:
        return read_count(config, "attention_chunk_size")
    is_used = getattr(config, "use_sliding_window", True) is not False
    if (layer_type is None and is_used) or (layer_type is not None and "sliding" in layer_type):
        return read_count(config, "sliding_window", "sliding_window_size")
    return None


def _read_layer_type(path: str, module: nn.Module, config: Any) -> str | None:
    own = getattr(module, "layer_type", None)
    if isinstance(own, str):
        return own
    layer_types, layer = getattr(config, "layer_types", None), find_layer_number(path)
    if layer_types and layer is not None and layer < len(layer_types):
        return str(layer_types[layer])
    return None
