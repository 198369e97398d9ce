"""Stand-ins for the children of a module, and undoing what a second run changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from moetool.tracing.recording.watch.separate.block import Block, BlockCall, Part
from moetool.tracing.recording.watch.separate.random_states import restore_states


class StandIn(nn.Module):
    """Takes a module's place in its parent and has the same attributes."""

    def __init__(self, original: nn.Module, forward: Any) -> None:
        super().__init__()
        # nn.Module's own __setattr__ would make it a child, and takes longer than a small expert.
        vars(self).update(original=original, forward=forward, training=original.training)

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


def run_again(
    block: Block,
    call: BlockCall,
    states: torch.Tensor | None,
    stand_ins: Iterable[tuple[Part, Callable[..., Any]]],
    *,
    capture: AbstractContextManager[Any] | None = None,
) -> Any:
    """Return what a block makes of the arguments of its call, with stand-ins for what it calls.

    Args:
        block: It is as it was afterwards, except for its own attributes.
        states: Take the place of the hidden states that it was called with, if any.
        stand_ins: Parts, and the forwards that take their place.
        capture: Is entered while the block's own code runs.

    Raises:
        UntraceableError: The block can't be run again.
    """

    def exchange(value: Any) -> Any:
        return states if value is call.given and states is not None else value

    args = [exchange(value) for value in call.args]
    kwargs = {name: exchange(value) for name, value in call.kwargs.items()}
    with ExitStack() as stack:
        for part, forward in stand_ins:
            stack.enter_context(replaced(part, forward))
        for module in block.passed:
            stack.enter_context(without_hooks(module))
            stack.enter_context(kept_as_it_is(module))
        restore_states(call.devices, call.states)
        with block.run_again(), capture or nullcontext():
            return block.module.forward(*args, **kwargs)


@contextmanager
def replaced(part: Part, forward: Callable[..., Any]) -> Iterator[None]:
    """Put a stand-in with some forward in the place of a part."""
    children = part.parent._modules
    children[part.name] = StandIn(part.module, forward)
    try:
        yield
    finally:
        children[part.name] = part.module


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
    attributes = vars(module)
    hooks = {name: attributes[name] for name in ("_forward_hooks", "_forward_pre_hooks")}
    attributes.update({name: OrderedDict() for name in hooks})
    try:
        yield
    finally:
        attributes.update(hooks)


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
