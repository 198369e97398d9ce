"""Freeze a part of a model, as the training of the rest does."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from moetool.anatomy.components import Component
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import UsageError
from moetool.memory.training.frozen_parts import FrozenPart

_COMPONENTS = {
    FrozenPart.ROUTER: (Component.ROUTER,),
    FrozenPart.EXPERTS: (Component.ROUTED_EXPERTS,),
    FrozenPart.SHARED_EXPERTS: (Component.SHARED_EXPERTS,),
    FrozenPart.ATTENTION: (Component.MIXER,),
    FrozenPart.DENSE_MLP: (Component.DENSE_MLP,),
    FrozenPart.EMBEDDINGS: (Component.EMBEDDING, Component.LM_HEAD),
}


@contextmanager
def trained_except(model: PreTrainedModel, frozen: FrozenPart) -> Iterator[None]:
    """Let all parameters except those of one part require gradients, and restore them afterwards.

    Raises:
        UsageError: The model lacks that part, or has nothing else.
    """
    components = _COMPONENTS.get(frozen, ())
    placement = RoutedSkeleton.of(model).placement if components else None
    parameters = dict(model.named_parameters())
    left_out = {
        path
        for path in parameters
        if placement is not None and placement.place(path).component in components
    }
    if components and not left_out:
        raise UsageError(
            f"The model has no parameters under {frozen}, so nothing can be frozen.",
            hint="See its components with `moetool inspect`, or leave out --freeze.",
        )
    if len(left_out) == len(parameters):
        raise UsageError(
            f"The model has no parameters except those under {frozen}, so nothing is trained.",
            hint="Leave out --freeze.",
        )
    with trained_only(model, parameters.keys() - left_out):
        yield


@contextmanager
def trained_only(model: PreTrainedModel, paths: Collection[str]) -> Iterator[None]:
    """Let the floating-point parameters at some paths require gradients, and no others.

    They are restored afterwards.
    """
    parameters = dict(model.named_parameters())
    before = {path: parameter.requires_grad for path, parameter in parameters.items()}
    try:
        for path, parameter in parameters.items():
            parameter.requires_grad_(parameter.is_floating_point() and path in paths)
        yield
    finally:
        for path, parameter in parameters.items():
            parameter.requires_grad_(before[path])


@contextmanager
def masked(model: PreTrainedModel, paths: Collection[str]) -> Iterator[None]:
    """Multiply gradients of some parameters by a mask of their rows, as `moetool select` advises."""
    hooks = []
    try:
        for path in paths:
            parameter: Any = model.get_parameter(path)
            mask = parameter.new_zeros(len(parameter), *[1] * (parameter.dim() - 1))
            hooks.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))
        yield
    finally:
        for hook in hooks:
            hook.remove()
