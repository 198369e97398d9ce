"""Which module's forward calls are the calls of a routed layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer

_STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class CallScope:
    """A module whose every call passes its layers once, over tokens of its own.

    The model itself; in an encoder-decoder each of the two stacks, because `generate` calls the
    encoder by itself, and because each counts its own tokens.

    Attributes:
        path: Module path; empty for the model itself.
        layers: The routed layers within.
    """

    path: str
    layers: tuple[MoeLayer, ...]


def find_scopes(model: nn.Module, layers: Sequence[MoeLayer]) -> list[CallScope]:
    """Return the scopes of a model's routed layers, in the order of the layers."""
    stacks = list(_find_stacks(model))
    by_path: dict[str, list[MoeLayer]] = {}
    for layer in layers:
        path = next((p for p in stacks if layer.experts_path.startswith(f"{p}.")), "")
        by_path.setdefault(path, []).append(layer)
    return [CallScope(path, tuple(scoped)) for path, scoped in by_path.items()]


def find_encoder(model: nn.Module) -> str | None:
    """Return the path of an encoder-decoder's encoder; None for other models.

    A decoder-only model may have encoders too, of images or sound, but no decoder beside them.
    """
    return next((path for path in _find_stacks(model) if path.endswith("encoder")), None)


def _find_stacks(model: nn.Module) -> Iterable[str]:
    """Yield the paths of encoders and decoders that stand side by side."""
    for path, module in model.named_modules():
        children = dict(module.named_children())
        if all(name in children for name in _STACKS):
            yield from (f"{path}.{name}" if path else name for name in _STACKS)
