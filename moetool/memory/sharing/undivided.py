"""Models in which each layer that transformers never splits between GPUs is one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.routing.walk import walk_modules, walk_parameters


class _Undivided(nn.Module):
    """A layer whose tensors are one, of as many bytes."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        weights = torch.empty(num_bytes, dtype=torch.uint8, device="meta")
        self.weights = nn.Parameter(weights, requires_grad=False)


class _Divided(nn.Module):
    """A module whose parts may be put on several GPUs."""


def merge_undivided(model: PreTrainedModel) -> nn.Module:
    """Return a model of which transformers makes the same device maps in a fraction of the time.

    Of a layer that it never splits, transformers only reads the sum of bytes, and it reads it for
    every map. A layer stays as it is if there is more to it: a tensor that is elsewhere too, or that
    transformers ties or places apart.

    Args:
        model: The model on the meta device, in the dtypes it is loaded in.
    """
    names = frozenset(model._no_split_modules or ())
    placed_apart = getattr(model, "_no_placement_params", None)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    layers: dict[str, nn.Module] = {}
    bytes_by_layer: dict[str, Mapping[int, int]] = {}
    times_seen: Counter[int] = Counter()
    # What is within a layer isn't walked: by the time it would be, the layer is among those found.
    for path, module in walk_modules(model, closed=layers.keys()):
        if path and type(module).__name__ in names:
            layers[path] = module
            bytes_by_layer[path] = _list_bytes(module)
            times_seen.update(bytes_by_layer[path].keys())
        else:
            times_seen.update(map(id, _list_own(module)))
    holders_of_tied = {
        holder for pair in tied.items() for path in pair for holder in _list_holders(path)
    }
    merged: dict[int, nn.Module] = {}
    for path, layer in layers.items():
        num_bytes = bytes_by_layer[path]
        is_apart = (
            path in holders_of_tied
            or any(times_seen[key] > 1 for key in num_bytes)
            or (placed_apart and any(name in placed_apart for name, _ in walk_parameters(layer)))
        )
        merged[id(layer)] = layer if is_apart else _Undivided(sum(num_bytes.values()))
    whole: Any = _merge(model, merged)
    whole._no_split_modules = [*names, _Undivided.__name__]
    whole._no_placement_params = placed_apart
    whole.all_tied_weights_keys = tied
    return whole  # type: ignore[no-any-return]


def _merge(module: nn.Module, merged: dict[int, nn.Module]) -> nn.Module:
    """Return a module with merged layers in place of its own, and its other tensors as they are.

    Args:
        module: A module that is divided, or a layer.
        merged: What stands for each module, by its id. Those that are missing are added.
    """
    if id(module) not in merged:
        divided = _Divided()
        divided._parameters.update(module._parameters)
        divided._buffers.update(module._buffers)
        divided._modules.update(
            (name, _merge(child, merged))
            for name, child in module._modules.items()
            if child is not None
        )
        merged[id(module)] = divided
    return merged[id(module)]


def _list_own(module: nn.Module) -> list[torch.Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]


def _list_bytes(layer: nn.Module) -> Mapping[int, int]:
    """Return the bytes of each of a layer's tensors, by its id."""
    return {
        id(tensor): tensor.nbytes
        for _, module in walk_modules(layer)
        for tensor in _list_own(module)
    }


def _list_holders(path: str) -> list[str]:
    """Return the paths of the modules that a tensor is in, except the model's own."""
    words = path.split(".")
    return [".".join(words[:depth]) for depth in range(1, len(words))]
