"""Stand-ins for the children of a module, and undoing what a second run changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moetool.tracing.recording.watch.separate.block import Part


class StandIn(nn.Module):
    """Takes a module's place in its parent and has the same attributes."""

    def __init__(self, original: nn.Module, forward: Any) -> None:
        super().__init__()
        # nn.Module's own __setattr__ would make it a child.
        object.__setattr__(self, "original", original)
        self.forward = forward
        self.training = original.training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


def copy_output(output: Any) -> Any:
    """Return a module's output with copies of its tensors, because blocks change them in place."""
    if isinstance(output, torch.Tensor):
        return output.detach().clone()
    if isinstance(output, tuple) and type(output) is tuple:
        return tuple(map(copy_output, output))
    return output


def find_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the rows that an expert was called with; None if it gets other tensors as well."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 and tensors[0].dim() else None


def as_before(
    rows: torch.Tensor, given: torch.Tensor | None, hidden: torch.Tensor | None
) -> torch.Tensor:
    """Return an expert's rows, those that are a block's own hidden states from a copy of them.

    The block may go on to change its hidden states in place.

    Args:
        rows: # (..., width)
        given: The hidden states that the block was called with. # (..., hidden_size)
        hidden: A copy made before it ran. # (..., hidden_size)
    """
    if given is None or hidden is None or rows.data_ptr() != given.data_ptr():
        return rows
    if rows.numel() != given.numel() or rows.shape[-1] != given.shape[-1]:
        return rows
    own = hidden.reshape(rows.shape)
    return own if torch.equal(own, rows) else rows


@contextmanager
def replaced(part: Part, forward: Callable[..., Any]) -> Iterator[None]:
    """Put a stand-in with some forward in the place of a part."""
    setattr(part.parent, part.name, StandIn(part.module, forward))
    try:
        yield
    finally:
        setattr(part.parent, part.name, part.module)


def outline_output(output: Any) -> Any:
    """Return an output whose tensors have their shape, and take no memory."""
    if isinstance(output, torch.Tensor):
        return output.detach().new_zeros(()).expand(output.shape)
    if isinstance(output, tuple) and type(output) is tuple:
        return tuple(map(outline_output, output))
    return output


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Hide a second run from the forward hooks of others: it is not a call of the model."""
    hooks, pre_hooks = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks, pre_hooks


@contextmanager
def kept_as_it_is(block: nn.Module) -> Iterator[None]:
    """Undo the changes that a block, such as one that counts its calls, makes to itself."""
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
