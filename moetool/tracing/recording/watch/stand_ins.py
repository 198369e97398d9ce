"""Run a module again with others in the place of its children, and leave no trace of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class StandIn(nn.Module):
    """Takes a module's place in its parent, and answers for its attributes."""

    def __init__(self, original: nn.Module, forward: Any) -> None:
        super().__init__()
        # Past nn.Module's own __setattr__, which would make it a child.
        object.__setattr__(self, "original", original)
        self.forward = forward
        self.training = original.training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


def copy_output(output: Any) -> Any:
    """Return what a module returned with copies of its tensors: blocks change them in place."""
    if isinstance(output, torch.Tensor):
        return output.detach().clone()
    if isinstance(output, tuple) and type(output) is tuple:
        return tuple(map(copy_output, output))
    return output


@contextmanager
def replaced(parent: nn.Module, children: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other modules in the place of a module's children."""
    originals = {name: parent.get_submodule(name) for name in children}
    try:
        for name, child in children.items():
            setattr(parent, name, child)
        yield
    finally:
        for name, child in originals.items():
            setattr(parent, name, child)


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Keep the forward hooks of others from seeing what is none of the model's calls."""
    hooks, pre_hooks = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks, pre_hooks


@contextmanager
def kept_as_it_is(block: nn.Module) -> Iterator[None]:
    """Undo what a block changes of its own attributes and buffers, as those do that count calls."""
    attributes = dict(vars(block))
    buffers: Sequence[tuple[str, torch.Tensor, torch.Tensor]] = [
        (name, buffer, buffer.clone()) for name, buffer in block.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        vars(block).clear()
        vars(block).update(attributes)
        for name, buffer, value in buffers:
            buffer.copy_(value)
            setattr(block, name, buffer)
