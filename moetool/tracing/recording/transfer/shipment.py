"""Copies of the decisions of some calls, on the devices that made them, to be sent together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.call_tokens import CallInputs
from moetool.tracing.recording.transfer.host_copies import is_asynchronous
from moetool.tracing.recording.watch.decision import Decision

# Slots for which a shipment has room: small calls, such as those of single tokens, share one, because
# sending takes about as long for one token as for thousands.
_SLOTS_PER_SHIPMENT = 8192

# Float types that are kept as they are; others become float32.
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class LayerStack:
    """Values of layers whose decisions are alike: of one shape, one dtype and on one device.

    Attributes:
        tensors: Ids and weights, and scores if they are kept. # each (num_layers, num_slots, …)
        rows: The first index of each layer in them.
    """

    tensors: tuple[torch.Tensor, ...]
    rows: dict[MoeLayer, int] = field(default_factory=dict)

    def cut(self, start: int, stop: int) -> list[tuple[torch.Tensor, ...]]:
        """Return the values of some slots, layer by layer, each of shape `(num_slots, …)`."""
        return list(zip(*(tensor[:, start:stop].unbind(0) for tensor in self.tensors), strict=True))


class Place(NamedTuple):
    """The place of a layer's values for one call.

    Attributes:
        stack: Holds the values.
        row: Index of the layer in it.
        shape: Of ids and weights, `(num_slots, top_k)`.
        weights_dtype: The dtype in which weights are kept.
        values: Views of the call's slots. # each (num_slots, …)
    """

    stack: LayerStack
    row: int
    shape: torch.Size
    weights_dtype: torch.dtype
    values: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ShippedCall:
    """A call whose decisions a shipment holds.

    Attributes:
        number: Running number.
        inputs: The batch.
        start: Its first slot in the shipment.
        places: Of each layer that ran.
    """

    number: int
    inputs: CallInputs
    start: int
    places: dict[MoeLayer, Place]


class Shipment:
    """Copies of the decisions of consecutive calls of one scope.

    Copies, because blocks may go on to change these tensors in place. Layers whose decisions are alike
    share tensors: a GPU waits for the number of operations, not for their size.

    Attributes:
        scope: Path of the module that is called.
        order: The layers of the scope, in the model's order.
        calls: Those that have ended.
        stacks: All values.
        num_slots: Slots taken, pads included.
        is_asynchronous: Whether the calls are on a device that goes on while it sends.

    Args:
        scope: As above.
        order: As above.
        inputs: The first call's batch.
    """

    def __init__(self, scope: str, order: Sequence[MoeLayer], inputs: CallInputs) -> None:
        self.scope = scope
        self.order = order
        self.calls: list[ShippedCall] = []
        self.stacks: list[LayerStack] = []
        self.num_slots = 0
        self.is_asynchronous = is_asynchronous(inputs.device)
        least = _SLOTS_PER_SHIPMENT if self.is_asynchronous else 0
        self._capacity = max(inputs.num_slots, least)
        self._by_kind: dict[object, LayerStack] = {}
        self._targets: dict[MoeLayer, Place] = {}
        self._places: dict[MoeLayer, Place] = {}
        self._under_way: tuple[int, CallInputs] | None = None

    def has_room(self, num_slots: int) -> bool:
        """Return whether another call of some slots fits."""
        return self.num_slots + num_slots <= self._capacity

    def begin(self, number: int, inputs: CallInputs) -> None:
        """Make room for a call; one that was begun and not ended is forgotten."""
        self._under_way = number, inputs
        self._places = {}
        start, stop = self.num_slots, self.num_slots + inputs.num_slots
        self._targets = {}
        for stack in self.stacks:
            width, dtype = stack.tensors[0].shape[2], stack.tensors[1].dtype
            shape = torch.Size((inputs.num_slots, width))
            for (layer, row), values in zip(
                stack.rows.items(), stack.cut(start, stop), strict=False
            ):
                self._targets[layer] = Place(stack, row, shape, dtype, values)

    def has(self, layer: MoeLayer) -> bool:
        """Return whether a layer has run in the call under way."""
        return layer in self._places

    def find(self, layer: MoeLayer) -> Decision:
        """Return the decision of a layer that has run in the call under way."""
        return Decision(*self._places[layer].values)

    def expects(self, layer: MoeLayer, decision: Decision) -> bool:
        """Return whether a decision is as the layer's earlier ones, and the layer has not run yet."""
        place = self._targets.get(layer)
        ids, weights, scores = decision
        return (
            place is not None
            and layer not in self._places
            and ids.shape == place.shape
            and weights.dtype is place.weights_dtype
            and len(place.values) == (2 if scores is None else 3)
            and (scores is None or _fits(place.values[2], scores))
        )

    def copy(self, layer: MoeLayer, decision: Decision) -> None:
        """Take the decision of a layer in the call under way, as it is expected."""
        self._places[layer] = place = self._targets[layer]
        values = place.values
        if torch.is_grad_enabled():
            # Inside autograd's graph a copy would be an operation of the model.
            with torch.no_grad():
                _copy(values, decision)
        else:
            _copy(values, decision)

    def make_place(self, layer: MoeLayer, decision: Decision) -> None:
        """Expect decisions of a layer that look like this one."""
        assert self._under_way is not None
        given = [value for value in decision if value is not None]
        kind = tuple((value.device, value.shape[1], _choose_dtype(value)) for value in given)
        stack = self._by_kind.get(kind)
        if stack is None:
            shape = (len(self.order), self._capacity)
            tensors = tuple(
                torch.empty((*shape, width), dtype=dtype, device=device)
                for device, width, dtype in kind
            )
            stack = self._by_kind[kind] = LayerStack(tensors)
            self.stacks.append(stack)
        row = stack.rows.setdefault(layer, len(stack.rows))
        start, stop = self.num_slots, self.num_slots + self._under_way[1].num_slots
        values = tuple(tensor[row, start:stop] for tensor in stack.tensors)
        self._targets[layer] = Place(stack, row, values[0].shape, values[1].dtype, values)

    def end(self) -> None:
        """End the call under way."""
        assert self._under_way is not None
        number, inputs = self._under_way
        self.calls.append(ShippedCall(number, inputs, self.num_slots, self._places))
        self.num_slots += inputs.num_slots
        self._under_way = None


def _copy(places: tuple[torch.Tensor, ...], decision: Decision) -> None:
    ids, weights, scores = decision
    places[0].copy_(ids)
    places[1].copy_(weights)
    if scores is not None:
        places[2].copy_(scores)


def _fits(place: torch.Tensor, value: torch.Tensor) -> bool:
    return place.shape == value.shape and place.dtype is _choose_dtype(value)


def _choose_dtype(value: torch.Tensor) -> torch.dtype:
    if not value.is_floating_point():
        return torch.int32
    return value.dtype if value.dtype in _KEPT else torch.float32
