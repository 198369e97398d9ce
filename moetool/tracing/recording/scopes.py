"""A model with the routed layers to record, and the modules whose calls pass them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer, find_moe_layers, select_layers
from moetool.anatomy.routing.walk import is_called
from moetool.errors import DenseModelError, UntraceableError
from moetool.tracing.recording.compiled import check_not_scripted

# Stacks that text alone does not pass; every other routed layer must be seen in every call.
OPTIONAL_STACKS = ("vision", "audio", "talker")

_STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class CallScope:
    """A module whose every call passes each of its layers once, over the same tokens.

    This is the model itself, except in an encoder-decoder: there each of the two stacks is a scope,
    because `generate` calls the encoder separately and each stack counts its own tokens.

    Attributes:
        path: Module path; empty for the model itself.
        layers: The routed layers within.
        optional: Those of them that need not run in every call: text alone does not pass them, or they
            are within the experts of another layer.
    """

    path: str
    layers: tuple[MoeLayer, ...]
    optional: frozenset[MoeLayer]


@dataclass(frozen=True)
class RecordedModel:
    """A model whose routed layers are known. Everything that runs or records it works from this.

    Attributes:
        model: The loaded model, or its skeleton.
        layers: The routed layers to record, in the model's order.
        scopes: The modules that are called, in the order of their layers.
        encoder: Path of an encoder-decoder's encoder; None for other models, although a
            decoder-only model may have encoders of images or sound.
    """

    model: nn.Module
    layers: tuple[MoeLayer, ...]
    scopes: tuple[CallScope, ...]
    encoder: str | None


def find_recorded_model(
    model: nn.Module, *, layers: Collection[int] | None = None, allow_inexact: bool = False
) -> RecordedModel:
    """Return a model with the routed layers to record and the scopes that they are in.

    Args:
        model: A loaded model or a skeleton.
        layers: Record only these layer numbers; None records all.
        allow_inexact: Accept layers whose decisions are not those that the experts carry out.

    Raises:
        DenseModelError: The model has no routed experts.
        UntraceableError: Its routing can't be recorded exactly.
        UsageError: A layer number has no routed experts.
    """
    try:
        found = find_moe_layers(model, allow_inexact=allow_inexact)
    except (DenseModelError, UntraceableError, ValueError):
        check_not_scripted(model)
        raise
    selected = select_layers(found, layers)
    stacks = list(_find_stacks(model))
    return RecordedModel(
        model=model,
        layers=selected,
        scopes=tuple(_group_by_scope(selected, stacks)),
        encoder=next((path for path in stacks if path.endswith("encoder")), None),
    )


def _group_by_scope(layers: Iterable[MoeLayer], stacks: Sequence[str]) -> Iterator[CallScope]:
    by_path: dict[str, list[MoeLayer]] = {}
    for layer in layers:
        path = next((path for path in stacks if layer.experts_path.startswith(f"{path}.")), "")
        by_path.setdefault(path, []).append(layer)
    for path, scoped in by_path.items():
        yield CallScope(path, tuple(scoped), frozenset(_find_optional(scoped)))


def _find_optional(layers: Sequence[MoeLayer]) -> Iterator[MoeLayer]:
    for layer in layers:
        is_within = any(layer.experts_path.startswith(f"{o.experts_path}.") for o in layers)
        if is_within or layer.stack in OPTIONAL_STACKS:
            yield layer


def _find_stacks(model: nn.Module) -> Iterator[str]:
    """Yield the paths of encoders and decoders that have the same parent."""
    for path, module in model.named_modules():
        children = dict(module.named_children())
        if all(name in children and is_called(children[name]) for name in _STACKS):
            yield from (f"{path}.{name}" if path else name for name in _STACKS)
