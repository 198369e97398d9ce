"""Decisions that have no place in the shipment of their call.

Shipments hold one decision of each layer for the tokens of the call's batch. A layer that counts other
tokens, such as patches of an image with a class token, or that runs again in the same call, is
recorded apart, at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.block_tokens import BlockShapes, number_tokens
from moetool.tracing.recording.call_tokens import CallInputs, CallTokens, find_batch, find_input
from moetool.tracing.recording.calls import RecordedCall, RecordedLayer, TokenAxis
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.token_masks import refuse_other_masks
from moetool.tracing.recording.transfer.checks import find_faults, refuse_faults
from moetool.tracing.recording.transfer.host_copies import to_numpy
from moetool.tracing.recording.watch.decision import Decision


@dataclass(frozen=True)
class _CallUnderWay:
    """A forward call that has begun.

    Attributes:
        number: Its running number.
        inputs: Its batch; None if it has neither token ids nor embeddings.
        shape: Rows and columns of that batch; empty if there is none.
        mask: Its attention mask, if any.
        recorded: What was recorded apart.
        num_runs: Of each layer that was.
    """

    number: int
    inputs: CallInputs | None
    shape: tuple[int, ...]
    mask: torch.Tensor | None
    recorded: list[RecordedCall] = field(default_factory=list)
    num_runs: Counter[MoeLayer] = field(default_factory=Counter)


class DecisionsApart:
    """Knows which tokens the layers of a call decide for, and records what no shipment has a place for."""

    def __init__(self) -> None:
        self._shapes = BlockShapes()
        # By scope.
        self._calls: dict[str, _CallUnderWay] = {}

    def install(self, model: nn.Module, layers: Iterable[MoeLayer], hooks: Hooks) -> None:
        """Place the hooks."""
        self._shapes.install(model, layers, hooks)
        hooks.on_removal(self._calls.clear)

    def begin(self, scope: str, inputs: Mapping[str, Any], *, number: int) -> CallInputs | None:
        """Expect decisions of a new call; one that did not end is forgotten.

        Args:
            scope: Path of the module that is called.
            inputs: The call's arguments by name.
            number: Its running number.

        Returns:
            Its batch; None if it has neither token ids nor embeddings.

        Raises:
            UntraceableError: It is unknown which slots hold tokens, or how many came before.
        """
        self._calls.pop(scope, None)
        batch, mask = find_batch(inputs), find_input(inputs, "attention_mask")
        if batch is None and mask is None:
            refuse_other_masks(inputs)
        tokens = None if batch is None else CallInputs(inputs)
        shape = () if batch is None else tuple(batch.shape[:2])
        self._calls[scope] = _CallUnderWay(number, tokens, shape, mask)
        return tokens

    def is_under_way(self, scope: str) -> bool:
        """Return whether a call has begun and not ended."""
        return scope in self._calls

    def has(self, scope: str, layer: MoeLayer) -> bool:
        """Return whether a layer has been recorded apart in the call under way."""
        return self._calls[scope].num_runs[layer] > 0

    def fits(self, scope: str, layer: MoeLayer, decision: Decision) -> bool:
        """Return whether a decision is about the tokens of the call's batch, in their order."""
        call, num_tokens = self._calls[scope], len(decision.experts)
        if call.inputs is None or num_tokens != call.inputs.num_slots:
            return False
        num_rows, num_columns = call.shape
        # Blocks that get the columns first decide in another order.
        is_turned = self._shapes.find(layer, num_tokens=num_tokens) == (num_columns, num_rows)
        return num_rows == num_columns or not is_turned

    def take(self, scope: str, layer: MoeLayer, decision: Decision, *, has_run: bool) -> None:
        """Record a decision.

        Args:
            scope: Path of the module that is called.
            layer: A layer of the module.
            decision: Of all its tokens, pads included.
            has_run: Whether the call's shipment has a decision of the layer too.

        Raises:
            UntraceableError: It is not a routing decision, or its pads are unknown.
        """
        call = self._calls[scope]
        tokens, axis = self._find_tokens(call, scope, layer, decision)
        ids, weights = decision.experts.detach().cpu(), decision.weights.detach().cpu()
        faults = to_numpy(find_faults([layer], ids[None], weights[None])[0])
        refuse_faults(layer, faults[tokens.slots])
        scores = decision.scores
        recorded = RecordedLayer(
            layer=layer,
            experts=to_numpy(ids)[tokens.slots].astype(np.int16),
            weights=_take_floats(weights, tokens),
            scores=None if scores is None else _take_floats(scores.detach().cpu(), tokens),
        )
        call.recorded.append(
            RecordedCall(
                call=call.number,
                scope=scope,
                batch_index=tokens.batch_index,
                position=tokens.position,
                layers=(recorded,),
                run=call.num_runs[layer] + has_run,
                token_axis=axis,
            )
        )
        call.num_runs[layer] += 1

    def end(self, scope: str) -> list[RecordedCall]:
        """End a call, and return what was recorded of it."""
        return self._calls.pop(scope).recorded

    def _find_tokens(
        self, call: _CallUnderWay, scope: str, layer: MoeLayer, decision: Decision
    ) -> tuple[CallTokens, TokenAxis]:
        if call.inputs is not None and self.fits(scope, layer, decision):
            return call.inputs.tokens, TokenAxis.INPUT
        shape = self._shapes.find(layer, num_tokens=len(decision.experts))
        return number_tokens(shape, call.mask, path=layer.block_path), TokenAxis.BLOCK


def _take_floats(values: torch.Tensor, tokens: CallTokens) -> NDArray[np.float32]:
    return to_numpy(values.float())[tokens.slots]
