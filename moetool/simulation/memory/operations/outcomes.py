"""Outcomes of operations: their results and the memory they take, found once for each kind of call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from moetool.simulation.memory.layer_events import Workspace
from moetool.simulation.meta.layouts import Layout, is_plain, read_layout


class Need(NamedTuple):
    """A product that needs a workspace.

    Attributes:
        num_events: Events before it.
        workspace: The kind of workspace.
        operation: The product.
    """

    num_events: int
    workspace: Workspace
    operation: str


class OperationEvent(NamedTuple):
    """A birth or death during an operation.

    Attributes:
        block: Its number among the blocks that the operation makes.
        num_bytes: The bytes requested; -1 for its death.
        operation: The operation that it is part of; empty for a death.
    """

    block: int
    num_bytes: int
    operation: str


class New(NamedTuple):
    """A result in memory that the operation made, alone in its block."""

    block: int
    layout: Layout


class View(NamedTuple):
    """A result in the memory of the tensor at a position among those given."""

    position: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int


class Given(NamedTuple):
    """A result that is the tensor at a position among those given."""

    position: int


@dataclass(frozen=True)
class OperationOutcome:
    """The results of an operation, and its births and deaths.

    Attributes:
        events: Its births and deaths in order.
        num_made: Number of blocks it makes.
        needs: Its products that need a workspace, in order.
        results: Its results in order.
        container: The type of what the results come in; None for a single one.
        shared: The positions among the tensors given of those whose memory is a result's as well.
    """

    events: tuple[OperationEvent, ...]
    num_made: int
    needs: tuple[Need, ...]
    results: tuple[New | View | Given, ...]
    container: type | None
    shared: tuple[int, ...]


def make_outcome(
    events: Sequence[OperationEvent],
    needs: Sequence[Need],
    *,
    num_made: int,
    given: Sequence[torch.Tensor],
    result: Any,
    number_block: Callable[[torch.Tensor], int],
) -> OperationOutcome | None:
    """Return the outcome of an operation; None if it can't stand for that of another call.

    It can't if other memory than that of its results outlives it, or if memory died that it didn't
    make.

    Args:
        events: Its births and deaths in order.
        needs: Its products that need a workspace, in order.
        num_made: Number of blocks it made.
        given: The tensors that it was given.
        result: A tensor, or a tuple or list of them.
        number_block: Returns the number of a tensor's block among those that the operation made.
    """
    is_single = isinstance(result, torch.Tensor)
    if not is_single and type(result) not in (tuple, list):
        return None
    addresses = [tensor.untyped_storage()._cdata for tensor in given]
    results: list[New | View | Given] = []
    for tensor in [result] if is_single else result:
        if type(tensor) is not torch.Tensor and not any(tensor is each for each in given):
            return None
        address = tensor.untyped_storage()._cdata
        if address not in addresses:
            described: New | View | None = _describe_new(tensor, number_block(tensor))
        elif addresses.count(address) > 1:
            # Another call may be given two tensors that don't share memory.
            described = None
        else:
            position = addresses.index(address)
            if tensor is given[position]:
                results.append(Given(position))
                continue
            described = _describe_view(tensor, given[position], position)
        if described is None:
            return None
        results.append(described)
    living = _find_living(events)
    if living is None or living != sorted(each.block for each in results if isinstance(each, New)):
        return None
    return OperationOutcome(
        events=tuple(events),
        num_made=num_made,
        needs=tuple(needs),
        results=tuple(results),
        container=None if is_single else type(result),
        shared=tuple({each.position for each in results if not isinstance(each, New)}),
    )


def _describe_new(tensor: torch.Tensor, block: int) -> New | None:
    """Return the description of a new tensor; None if it doesn't fill its memory."""
    layout = read_layout(tensor)
    fills = tensor.untyped_storage().nbytes() == layout.num_bytes and not tensor.storage_offset()
    return New(block, layout) if fills and is_plain(tensor) else None


def _describe_view(tensor: torch.Tensor, given: torch.Tensor, position: int) -> View | None:
    """Return the description of a view; None if it reads the memory as another dtype."""
    if tensor.dtype is not given.dtype:
        return None
    return View(position, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _find_living(events: Sequence[OperationEvent]) -> list[int] | None:
    """Return the blocks that outlive an operation; None if others died than it made."""
    living = set[int]()
    for block, num_bytes, _ in events:
        if num_bytes >= 0:
            living.add(block)
        elif block in living:
            living.remove(block)
        else:
            return None
    return sorted(living)
