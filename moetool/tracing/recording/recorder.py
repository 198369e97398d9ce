"""Record which experts every token goes to, from what the experts modules receive.

The steps of one recorded call, all of them hooks that `RoutingRecorder` places when it is entered:

1. `_begin_call`, before the forward of a scope (the model, or a stack of an encoder-decoder), finds
   where the batch holds real tokens.
2. While the scope runs, each layer's watch (see `watch`) reads its decision, pads included, and
   reports it to `_take_decision`.
3. `_end_call`, after the forward, refuses layers that no watch saw, and sends the decisions on their
   way to host memory, where pads are dropped and a `RecordedCall` is made of them (see `transfer`).

A GPU is never waited for: hooks only copy on it, and checks and transfers run on a side stream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.choices import take_flag
from moetool.errors import UntraceableError, UsageError
from moetool.tracing.recording.apart import DecisionsApart
from moetool.tracing.recording.call_tokens import CallInputs, find_input, name_inputs
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.compiled import check_not_compiled, explain_silence
from moetool.tracing.recording.frames import make_frame
from moetool.tracing.recording.generate_masks import GenerateMasks
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.saliency.meter import SaliencyMeter, check_saliency
from moetool.tracing.recording.saliency.sums import SaliencySums
from moetool.tracing.recording.scopes import CallScope, find_recorded_model
from moetool.tracing.recording.token_masks import is_token_mask
from moetool.tracing.recording.transfer.host_copies import SideStreams
from moetool.tracing.recording.transfer.inbox import Inbox, Receipt, make_receipt
from moetool.tracing.recording.transfer.sent import SentShipment
from moetool.tracing.recording.transfer.shipment import Shipment
from moetool.tracing.recording.watch import Decision, Watch, watch_layer
from moetool.tracing.recording.watch.chance import ChanceWatch
from moetool.tracing.recording.watch.operations.watch import OperationsWatch

if TYPE_CHECKING:
    import pandas as pd


class RoutingRecorder:
    """Records the routing decisions of a model while it runs.

    The choice is read from what the experts module receives and never recomputed from router
    scores: DeepSeek-style routers choose on bias-corrected, group-limited scores, and call
    `topk(sorted=False)`. The model computes exactly what it computes without the recorder.

        with RoutingRecorder(model) as recorder:
            model(**tokenizer(texts, padding=True, return_tensors="pt"))
        frame = recorder.to_frame()

    Enter the recorder before the model is first compiled: compiled code ignores hooks that come
    later, and the recorder then raises an error instead of returning an empty record.

    In an encoder-decoder each stack's call is recorded separately and has its own positions. The
    attention mask is read as transformers' models read it: 1 for a token, 0 for a pad.

    Args:
        model: A model with routed experts, or a routed layer alone. If it is not called with token
            ids or `inputs_embeds`, positions count along the axes of the hidden states that the
            layer's block received, as `token_axis` says.
        layers: Record only these layer numbers; by default all.
        keep_scores: Also keep each router's scores of all experts, in `RecordedLayer.scores`.
        allow_inexact: Record layers whose decisions are not those that the experts carry out, and
            experts that draw random numbers in training mode.
        keep_saliency: Also run each chosen expert once more, and add up the norms of their outputs
            in `saliency`.

    Raises:
        DenseModelError: The model has no routed experts.
        UntraceableError: Its routing can't be recorded exactly. Also raised on entering if the
            model has been compiled; by its forward if a call can't be recorded or experts draw
            random numbers in training mode; and on leaving if no call was seen.
        UsageError: A layer number in `layers` has no routed experts, or is not a number.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Collection[int] | None = None,
        keep_scores: bool = False,
        allow_inexact: bool = False,
        keep_saliency: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"A model to record can't be of type {type(model).__name__}.",
                hint="Give the loaded model, which is a torch module.",
            )
        keep_scores = take_flag(keep_scores, name="keep_scores")
        allow_inexact = take_flag(allow_inexact, name="allow_inexact")
        self.model = model
        self.recorded = find_recorded_model(model, layers=layers, allow_inexact=allow_inexact)
        self.layers = self.recorded.layers
        self._meter: SaliencyMeter | None = None
        if take_flag(keep_saliency, name="keep_saliency"):
            check_saliency(type(model).__name__, self.layers)
            self._meter = SaliencyMeter(self.layers)
        self._inbox = Inbox()
        self._receipts: list[Receipt] = []
        self._num_calls = 0
        self._streams = SideStreams()
        self._hooks = Hooks()
        self._watches: dict[str, Watch] = {
            layer.experts_path: watch_layer(layer, keep_scores=keep_scores) for layer in self.layers
        }
        self._masks = GenerateMasks(model)
        self._allow_chance = allow_inexact
        # By the path of their scope: shipments that are being filled, and calls under way.
        self._shipments: dict[str, Shipment] = {}
        self._inputs: dict[str, CallInputs] = {}
        self._apart = DecisionsApart()
        self._scope_paths: dict[MoeLayer, str] = {}
        self._was_called = False
        # The number of calls begun, and the last layer of the latest that has decided.
        self.reached: tuple[int, MoeLayer | None] = (0, None)

    def __enter__(self) -> Self:
        check_not_compiled(self.model, self.layers)
        self._was_called = False
        try:
            self._install()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()
        self._send_all()
        self._inbox.close(raises=kind is None)
        if kind is None and not self._was_called:
            raise UntraceableError(
                f"No call of {type(self.model).__name__} was seen.",
                hint="Call the recorded model itself: a copy that torch.compile made earlier runs "
                "past hooks.",
            )

    def _install(self) -> None:
        # Placed last: a module that is recorded alone is the block too, and decides before it ends.
        ends: list[tuple[nn.Module, Any]] = []
        for scope in self.recorded.scopes:
            self._scope_paths.update(dict.fromkeys(scope.layers, scope.path))
            watched = () if self._allow_chance else scope.layers
            chance = ChanceWatch(self.model, watched, runs_again=self._meter is not None)
            self._hooks.on_removal(chance.end)
            module = self.model.get_submodule(scope.path)
            self._hooks.before(module, self._begin_call(scope, chance), with_kwargs=True)
            ends.append((module, self._end_call(scope, chance)))
        self._apart.install(self.model, self.layers, self._hooks)
        for watch in self._watches.values():
            watch.install(self.model, self._take_decision, self._hooks)
        if self._meter is not None:
            self._meter.install(self.model, self._find_call, self._hooks)
        for module, end in ends:
            self._hooks.after(module, end)
        self._hooks.on_removal(self._masks.remove)
        self._masks.install()

    def _remove(self) -> None:
        self._hooks.remove()
        self._inputs.clear()

    @property
    def calls(self) -> list[RecordedCall]:
        """The calls recorded and not yet taken, for which this waits."""
        self._send_all()
        return [call for receipt in self._receipts for call in receipt.result()]

    @property
    def saliency(self) -> Mapping[MoeLayer, SaliencySums]:
        """Sums over all calls, by layer; empty unless they are kept."""
        return {} if self._meter is None else self._meter.sums

    def take_calls(self) -> list[RecordedCall]:
        """Return the calls recorded since the last time, for which this waits, and forget them."""
        return [call for receipt in self.take_receipts() for call in receipt.result()]

    def take_receipts(self) -> list[Receipt]:
        """Return receipts for the calls recorded since the last time, and forget these calls.

        The calls may still be on their way from a GPU: `result` of a receipt waits for its calls, in
        any thread.
        """
        self._send_all()
        receipts, self._receipts = self._receipts, []
        return receipts

    def find_router(self, layer: MoeLayer) -> str | None:
        """Return the module path of a layer's router, once a call was recorded.

        None if no sibling of the experts returned the decision, as when the block computes it.
        """
        watch = self._watches.get(layer.experts_path)
        return watch.router_path if watch else None

    def find_output_factor(self, layer: MoeLayer) -> float | None:
        """Return the factor by which a layer's block multiplies the sum of its experts.

        It is known once a call was recorded. None if the block does more than multiply the sum.
        The recorded weights do not include this factor.
        """
        watch = self._watches.get(layer.experts_path)
        return watch.output_factor if watch else None

    def find_routing(self, layer: MoeLayer) -> str | None:
        """Return how a layer's tokens and experts came together, once a call was recorded.

        `token_choice`, `expert_choice` if experts chose among tokens, or `dense` if every expert ran
        on every token with a weight that is not zero. None where only the decisions are known.
        """
        watch = self._watches.get(layer.experts_path)
        return watch.routing if isinstance(watch, OperationsWatch) else None

    def weighs_input(self, layer: MoeLayer) -> bool:
        """Return whether a layer's weights multiply what its experts receive, once it was called."""
        return bool(getattr(self._watches.get(layer.experts_path), "weighs_input", False))

    def to_frame(self) -> pd.DataFrame:
        """Return the calls recorded and not yet taken, one row per assignment.

        Columns: `call` (forward calls, from 0), `batch_index`, `position` (among the row's real
        tokens), `stack`, `layer`, `module` (path of the experts), `rank` (0 is the decision's
        largest weight), `expert`, `weight`, `run` (runs of the layer in the call, from 0),
        `token_axis` (`input` if positions are those of the token ids that the model was called with,
        `block` if they are those of the hidden states that the layer's block received).
        `attrs["routing"]` has what `find_routing` returns, by module.
        """
        frame = make_frame(self.calls)
        kinds = {layer.experts_path: self.find_routing(layer) for layer in self.layers}
        frame.attrs["routing"] = {path: kind for path, kind in kinds.items() if kind}
        return frame

    def _begin_call(self, scope: CallScope, chance: ChanceWatch) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._was_called = True
            self.reached = (self.reached[0] + 1, None)
            inputs = name_inputs(module, args, kwargs)
            mask = find_input(inputs, "attention_mask")
            if mask is not None and not is_token_mask(mask):
                inputs = self._masks.restore(inputs)
            batch = self._apart.begin(scope.path, inputs, number=self._num_calls)
            if batch is not None:
                self._begin_shipping(scope, batch)
            chance.begin()

        return hook

    def _take_decision(self, layer: MoeLayer, decision: Decision) -> None:
        path = self._scope_paths[layer]
        shipment = self._shipments.get(path) if path in self._inputs else None
        # The usual case first: this runs in every layer of every call, while a GPU may wait.
        if shipment is None or not shipment.expects(layer, decision):
            if not self._apart.is_under_way(path):
                self._was_called = True
                raise UntraceableError(
                    f"{layer.experts_path} ran outside a forward call of the recorded model.",
                    hint="Record the module that you call.",
                )
            self.reached = (self.reached[0], layer)
            has_run = shipment is not None and shipment.has(layer)
            if shipment is None or has_run or not self._apart.fits(path, layer, decision):
                self._apart.take(path, layer, decision, has_run=has_run)
                return
            shipment.make_place(layer, decision)
        self.reached = (self.reached[0], layer)
        shipment.copy(layer, decision)

    def _find_call(self, layer: MoeLayer) -> tuple[torch.Tensor, Decision]:
        """Return the slots of the real tokens of a call under way, and a layer's decision."""
        path = self._scope_paths[layer]
        watch = self._watches[layer.experts_path]
        is_searched = getattr(watch, "is_searched", False)
        if path not in self._inputs or self._apart.has(path, layer) or is_searched:
            raise UntraceableError(
                f"Can't record the saliency of {layer.experts_path}: it does not send each "
                "token of the model's batch to its experts once, as it is.",
                hint="Leave out keep_saliency: the decisions themselves can be recorded.",
            )
        decision = self._shipments[path].find(layer)
        slots = self._inputs[path].tokens.slots
        return torch.from_numpy(slots).to(decision.experts.device), decision

    def _end_call(self, scope: CallScope, chance: ChanceWatch) -> Any:
        def hook(_module: nn.Module, _args: object, _output: object) -> None:
            chance.end()
            inputs = self._inputs.pop(scope.path, None)
            shipment = self._shipments.get(scope.path) if inputs else None
            self._check_none_silent(scope, shipment)
            self._num_calls += 1
            if inputs and shipment and any(map(shipment.has, scope.layers)):
                shipment.end()
                # The next call is probably as large.
                if not shipment.has_room(inputs.num_slots):
                    self._send(scope.path)
            apart = self._apart.end(scope.path)
            if apart:
                self._send_all()
                self._receipts.append(make_receipt(apart))

        return hook

    def _begin_shipping(self, scope: CallScope, inputs: CallInputs) -> None:
        shipment = self._shipments.get(scope.path)
        if shipment is not None and not shipment.has_room(inputs.num_slots):
            self._send(scope.path)
            shipment = None
        if shipment is None:
            self._inbox.wait_for_room()
            shipment = self._shipments[scope.path] = Shipment(scope.path, scope.layers, inputs)
        shipment.begin(self._num_calls, inputs)
        self._inputs[scope.path] = inputs

    def _send_all(self) -> None:
        for path in list(self._shipments):
            if path not in self._inputs:
                self._send(path)

    def _send(self, path: str) -> None:
        shipment = self._shipments.pop(path)
        if shipment.calls:
            sent = SentShipment(shipment, self._streams)
            receipt = self._inbox.receive(sent, is_asynchronous=shipment.is_asynchronous)
            self._receipts.append(receipt)

    def _check_none_silent(self, scope: CallScope, shipment: Shipment | None) -> None:
        silent = [
            layer
            for layer in scope.layers
            if layer not in scope.optional
            and not (shipment and shipment.has(layer))
            and not self._apart.has(scope.path, layer)
        ]
        if silent:
            raise explain_silence(self.model, silent, num_layers=len(scope.layers))
