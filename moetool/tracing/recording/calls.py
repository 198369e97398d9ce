"""Recorded forward calls, and those that a GPU is still sending to host memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.buffers import DecisionBuffers, LayerStack
from moetool.tracing.recording.call_tokens import CallInputs, CallTokens
from moetool.tracing.recording.checks import find_faults, refuse_faults
from moetool.tracing.recording.host_copies import HostCopy, SideStreams, is_asynchronous


@dataclass(frozen=True)
class RecordedLayer:
    """One routed layer's decisions for the real tokens of a call.

    Attributes:
        experts: Ids in the router's order; -1 where none ran. # (num_tokens, top_k)
        weights: As the experts module received them. # (num_tokens, top_k)
        scores: The router's number for every expert, if asked for. # (num_tokens, num_scores)
    """

    layer: MoeLayer
    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    scores: NDArray[np.float32] | None


@dataclass(frozen=True)
class RecordedCall:
    """One forward call of the model, or in an encoder-decoder of one of its stacks.

    Attributes:
        call: Running number, from 0.
        scope: Path of the module that was called; empty for the model itself.
        batch_index: Row of the batch. # (num_tokens,)
        position: Index among the real tokens of the row's sequence. # (num_tokens,)
        layers: In the model's order.
    """

    call: int
    scope: str
    batch_index: NDArray[np.int32]
    position: NDArray[np.int32]
    layers: tuple[RecordedLayer, ...]


class SentCall:
    """A call whose decisions are on their way to host memory.

    They are checked and copied on the side, while the device goes on with the model; `receive` waits
    for them.

    Attributes:
        is_asynchronous: Whether some of it comes from a device that goes on meanwhile.

    Args:
        call: Its running number.
        scope: Path of the module that was called.
        inputs: Its batch.
        buffers: Its decisions, pads included.
        order: All layers of the scope, in the model's order.
        streams: For the work on the side.
    """

    def __init__(
        self,
        call: int,
        scope: str,
        inputs: CallInputs,
        buffers: DecisionBuffers,
        *,
        order: Sequence[MoeLayer],
        streams: SideStreams,
    ) -> None:
        self._call = call
        self._scope = scope
        self._inputs = inputs
        self._order = [layer for layer in order if layer in buffers.decisions]
        self._decisions = [_SentStack(s, inputs, streams) for s in buffers.stacks.values()]
        self._scores = [_SentScores(stack, streams) for stack in buffers.scores.values()]
        self.is_asynchronous = any(
            is_asynchronous(stack.tensors[0].device) for stack in buffers.stacks.values()
        )

    def receive(self) -> RecordedCall:
        """Return the call, once everything has arrived.

        Raises:
            UntraceableError: Something else than decisions was received, or the mask does not
                distinguish pads from tokens.
        """
        tokens = self._inputs.tokens
        scores = {layer: values for sent in self._scores for layer, values in sent.receive(tokens)}
        found = {
            layer: RecordedLayer(layer, experts, weights, scores.get(layer))
            for sent in self._decisions
            for layer, experts, weights in sent.receive(tokens)
        }
        return RecordedCall(
            call=self._call,
            scope=self._scope,
            batch_index=tokens.batch_index,
            position=tokens.position,
            layers=tuple(found[layer] for layer in self._order),
        )


class _SentStack:
    """The decisions of layers alike, on their way."""

    def __init__(self, stack: LayerStack, inputs: CallInputs, streams: SideStreams) -> None:
        self._layers = stack.layers
        # Kept until all is read: the side stream reads them.
        self._stack: LayerStack | None = stack
        ids, weights = stack.filled
        with streams.behind(ids.device):
            faults = find_faults(stack.layers, ids, weights, inputs.find_real(ids.device))
            self._faults = HostCopy(faults)
            # No model has more than 32,767 experts in a layer; the check above saw all bits.
            self._ids = HostCopy(ids.to(torch.int16))
            self._weights = HostCopy(weights)

    def receive(
        self, tokens: CallTokens
    ) -> Iterator[tuple[MoeLayer, NDArray[np.int16], NDArray[np.float32]]]:
        """Yield each layer with its ids and weights, both `(num_tokens, top_k)`."""
        refuse_faults(self._layers, self._faults.read())
        ids: NDArray[np.int16] = _keep_tokens(self._ids, tokens)
        weights: NDArray[np.float32] = _keep_tokens(self._weights, tokens)
        self._stack = None
        yield from zip(self._layers, ids, weights, strict=True)


class _SentScores:
    """The scores of layers alike, on their way."""

    def __init__(self, stack: LayerStack, streams: SideStreams) -> None:
        self._layers = stack.layers
        self._stack: LayerStack | None = stack
        (scores,) = stack.filled
        with streams.behind(scores.device):
            self._scores = HostCopy(scores)

    def receive(self, tokens: CallTokens) -> Iterator[tuple[MoeLayer, NDArray[np.float32]]]:
        """Yield each layer with its scores, `(num_tokens, num_scores)`."""
        scores: NDArray[np.float32] = _keep_tokens(self._scores, tokens)
        self._stack = None
        yield from zip(self._layers, scores, strict=True)


def _keep_tokens(copy: HostCopy, tokens: CallTokens) -> NDArray[Any]:
    """Return the values of real tokens, in memory that is not pinned; floats become float32.

    Returns:
        # (num_layers, num_tokens, …)
    """
    sent = values = copy.read()
    if len(tokens.slots) < tokens.num_slots:
        values = values.index_select(1, torch.from_numpy(tokens.slots))
    if values.is_floating_point():
        values = values.float()
    if values is sent and copy.is_pinned:
        values = values.clone()
    return values.numpy()
