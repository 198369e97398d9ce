"""A shipment on its way to host memory, and the calls that come out of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.calls import RecordedCall, RecordedLayer
from moetool.tracing.recording.transfer.checks import find_faults, refuse_faults
from moetool.tracing.recording.transfer.host_copies import HostCopy, SideStreams, to_numpy
from moetool.tracing.recording.transfer.shipment import LayerStack, Shipment, ShippedCall


class SentShipment:
    """Decisions that are checked and copied on the side, while the device goes on with the model.

    Args:
        shipment: Its last call has ended.
        streams: For the work on the side.
    """

    def __init__(self, shipment: Shipment, streams: SideStreams) -> None:
        self._scope = shipment.scope
        self._order = shipment.order
        self._calls = shipment.calls
        self._num_slots = shipment.num_slots
        self._stacks = [_SentStack(s, shipment.num_slots, streams) for s in shipment.stacks]

    def receive(self) -> list[RecordedCall]:
        """Return the calls, once everything has arrived.

        Raises:
            UntraceableError: Something else than decisions was received, or a mask does not
                distinguish pads from tokens.
        """
        slots = np.concatenate([call.start + call.inputs.tokens.slots for call in self._calls])
        are_all_real = len(slots) == self._num_slots
        arrived = {
            id(sent.stack): sent.receive(None if are_all_real else slots) for sent in self._stacks
        }
        for sent in self._stacks:
            sent.release()
        return list(self._split(arrived))

    def _split(self, arrived: dict[int, tuple[NDArray[Any], ...]]) -> Iterator[RecordedCall]:
        """Yield each call with its part of what arrived.

        Args:
            arrived: By stack, faults, ids, weights and scores of the real tokens of all calls.
                # each (num_layers, num_tokens, …)
        """
        first = 0
        for call in self._calls:
            tokens = call.inputs.tokens
            part = slice(first, first + len(tokens.slots))
            first = part.stop
            yield RecordedCall(
                call=call.number,
                scope=self._scope,
                batch_index=tokens.batch_index,
                position=tokens.position,
                layers=tuple(
                    _make_layer(layer, call, arrived, part)
                    for layer in self._order
                    if layer in call.places
                ),
            )


def _make_layer(
    layer: MoeLayer, call: ShippedCall, arrived: dict[int, tuple[NDArray[Any], ...]], part: slice
) -> RecordedLayer:
    place = call.places[layer]
    faults, ids, weights, *scores = arrived[id(place.stack)]
    refuse_faults(layer, faults[place.row, part])
    return RecordedLayer(
        layer=layer,
        experts=ids[place.row, part],
        weights=weights[place.row, part],
        scores=scores[0][place.row, part] if scores else None,
    )


class _SentStack:
    """The values of layers alike, on their way.

    Attributes:
        stack: Their copies on the device, which the work on the side reads.
    """

    def __init__(self, stack: LayerStack, num_slots: int, streams: SideStreams) -> None:
        self.stack: LayerStack | None = stack
        num_layers = len(stack.rows)
        ids, weights, *scores = (tensor[:num_layers, :num_slots] for tensor in stack.tensors)
        with streams.behind(ids.device):
            self._copies = [
                HostCopy(find_faults(list(stack.rows), ids, weights)),
                # No model has more than 32,767 experts in a layer; the faults were found before.
                HostCopy(ids.to(torch.int16)),
                HostCopy(weights),
                *map(HostCopy, scores),
            ]

    def receive(self, slots: NDArray[np.int64] | None) -> tuple[NDArray[Any], ...]:
        """Return faults, ids, weights and scores of some slots, or of all."""
        return tuple(_keep(copy, slots) for copy in self._copies)

    def release(self) -> None:
        """Let go of the device's memory."""
        self.stack = None


def _keep(copy: HostCopy, slots: NDArray[np.int64] | None) -> NDArray[Any]:
    """Return the values of some slots, in memory that is not pinned; floats become float32.

    Returns:
        # (num_layers, num_tokens, …)
    """
    sent = copy.read()
    values = to_numpy(sent, slots=slots)
    # Everything else is in new memory already.
    is_as_sent = slots is None and sent.dtype is not torch.bfloat16
    if sent.is_floating_point():
        return values.astype(np.float32, copy=is_as_sent and copy.is_pinned)
    return values.copy() if is_as_sent and copy.is_pinned else values
