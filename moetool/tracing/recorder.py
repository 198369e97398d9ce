"""Record which experts every token goes to, from what the experts modules receive."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.moe_layers import MoeLayer, find_moe_layers, select_layers
from moetool.errors import UntraceableError
from moetool.tracing.recording import (
    CallTokens,
    RecordedCall,
    RecordedLayer,
    check_decisions,
    locate_tokens,
    name_inputs,
)
from moetool.tracing.routers import RouterWatch

if TYPE_CHECKING:
    import pandas as pd

# Stacks that text alone passes by; every other routed layer must speak in every call.
_OPTIONAL_STACKS = ("vision", "audio", "talker")


# What an experts module received: ids and weights, and what the router gave every expert.
Received = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class RoutingRecorder:
    """Records the routing decisions of a model while it runs.

    The choice is read from what the experts module receives and never recomputed from router
    scores: DeepSeek-style routers choose on bias-corrected, group-limited scores, and call
    `topk(sorted=False)`. The model computes exactly what it computes without the recorder.

        with RoutingRecorder(model) as recorder:
            model(**tokenizer(texts, padding=True, return_tensors="pt"))
        frame = recorder.to_frame()

    Enter the recorder before the model is first compiled: hooks that come later are not seen by
    compiled code, which ends in an error rather than in an empty record.

    Args:
        model: A transformers model with routed experts.
        layers: Record only these layer numbers; by default all.
        keep_scores: Also keep what each router gave every expert, in `RecordedLayer.scores`.

    Raises:
        DenseModelError: The model has no routed experts.
        UntraceableError: Its routing can't be recorded exactly. Raised as well by the model's
            forward while recording, when a call is not a plain one.
        ValueError: A layer number in `layers` has no routed experts.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Collection[int] | None = None,
        keep_scores: bool = False,
    ) -> None:
        self.model = model
        self.layers = select_layers(find_moe_layers(model), layers)
        self.calls: list[RecordedCall] = []
        self._keep_scores = keep_scores
        self._num_calls = 0
        self._handles: list[RemovableHandle] = []
        self._routers: dict[str, RouterWatch] = {}
        self._tokens: CallTokens | None = None
        # By experts path.
        self._received: dict[str, Received] = {}

    def __enter__(self) -> Self:
        register = self._handles.append
        register(self.model.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        register(self.model.register_forward_hook(self._end_call))
        for layer in self.layers:
            experts = self.model.get_submodule(layer.experts_path)
            self._routers[layer.experts_path] = RouterWatch(
                self.model, layer, keep_scores=self._keep_scores
            )
            hook = self._receive(layer)
            register(experts.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for router in self._routers.values():
            router.remove()
        self._tokens = None
        self._received.clear()

    def take_calls(self) -> list[RecordedCall]:
        """Return what was recorded since the last time, and forget it."""
        calls, self.calls = self.calls, []
        return calls

    def find_router(self, layer: MoeLayer) -> str | None:
        """Return the module path of a layer's router, once a call was recorded.

        None if no sibling of the experts returned the decision, as where a block computes it.
        """
        watch = self._routers.get(layer.experts_path)
        return watch.router_path if watch else None

    def to_frame(self) -> pd.DataFrame:
        """Return what was recorded and not taken: one row an assignment.

        Columns: `call` (forward calls, from 0), `batch_index`, `position` (among the row's real
        tokens), `stack`, `layer`, `module` (path of the experts), `rank` (0 is the decision's
        largest weight), `expert`, `weight`.
        """
        import pandas as pd

        frames = [_layer_frame(call, recorded) for call in self.calls for recorded in call.layers]
        columns = [
            "call",
            "batch_index",
            "position",
            "stack",
            "layer",
            "module",
            "rank",
            "expert",
            "weight",
        ]
        if not frames:
            return pd.DataFrame(columns=columns)
        return pd.concat(frames, ignore_index=True)

    def _begin_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._received.clear()
        self._tokens = locate_tokens(name_inputs(model, args, kwargs))

    def _receive(self, layer: MoeLayer) -> Any:
        def hook(_experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            path = layer.experts_path
            if self._tokens is None:
                raise UntraceableError(
                    f"{path} ran outside a forward call of the recorded model.",
                    hint="Record the module that you call.",
                )
            if path in self._received:
                raise UntraceableError(
                    f"{path} ran twice in one forward call.",
                    hint="moetool records models whose layers run once a call.",
                )
            ids, weights = _find_decision([*args, *kwargs.values()], path=path)
            if ids.shape[0] != self._tokens.num_slots:
                raise UntraceableError(
                    f"{path} received {ids.shape[0]} decisions for {self._tokens.num_slots} tokens.",
                    hint="moetool records models that route every token of a call.",
                )
            router = self._routers[path]
            router.identify(ids, weights)
            # Copies, because blocks may go on to change these tensors in place.
            self._received[path] = (
                ids.detach().to(torch.int32, copy=True),
                weights.detach().to(torch.float32, copy=True),
                router.scores,
            )

        return hook

    def _end_call(self, _model: nn.Module, _args: object, _output: object) -> None:
        tokens = self._tokens
        assert tokens is not None
        self._tokens = None
        silent = [
            layer.experts_path
            for layer in self.layers
            if layer.experts_path not in self._received and layer.stack not in _OPTIONAL_STACKS
        ]
        if silent:
            raise UntraceableError(
                f"{len(silent)} of {len(self.layers)} routed layers ran without being seen.",
                hint="Load the model without compiled code and without hub or MXFP4 kernels.",
                facts=[f"silent: {path}" for path in silent[:3]],
            )
        received = {
            layer: self._received[layer.experts_path]
            for layer in self.layers
            if layer.experts_path in self._received
        }
        self._received.clear()
        recorded = _keep_real_tokens(received, tokens)
        self.calls.append(
            RecordedCall(
                call=self._num_calls,
                batch_index=tokens.batch_index,
                position=tokens.position,
                layers=tuple(recorded[layer] for layer in self.layers if layer in recorded),
            )
        )
        self._num_calls += 1


def _find_decision(values: list[Any], *, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and weights among what an experts module was called with.

    Told by kind and shape, never by name: gpt-oss calls them `router_indices` and
    `routing_weights`.
    """
    tensors = [
        value for value in values[1:] if isinstance(value, torch.Tensor) and value.dim() == 2
    ]
    ids = [value for value in tensors if not value.is_floating_point()]
    weights = [value for value in tensors if value.is_floating_point()]
    if len(ids) != 1 or len(weights) != 1 or ids[0].shape != weights[0].shape:
        shapes = ", ".join(f"{value.dtype} {tuple(value.shape)}" for value in tensors) or "nothing"
        raise UntraceableError(
            f"{path} was not called with one tensor of ids and one of weights.",
            hint="moetool records experts called as (hidden_states, ids, weights).",
            facts=[f"seen: {shapes}"],
        )
    return ids[0], weights[0]


def _keep_real_tokens(
    received: Mapping[MoeLayer, Received], tokens: CallTokens
) -> dict[MoeLayer, RecordedLayer]:
    """Return what the layers received without the pads, checked, in host memory.

    Layers of one shape and device are handled together: a GPU is kept waiting by the number of
    operations, not by their size.
    """
    alike: dict[tuple[torch.device, int], list[MoeLayer]] = {}
    for layer, (ids, _, _) in received.items():
        alike.setdefault((ids.device, ids.shape[1]), []).append(layer)
    recorded = {}
    for (device, _), layers in alike.items():
        slots = torch.from_numpy(tokens.slots).to(device)
        # Both of shape (num_layers, num_tokens, top_k), from here on without pads.
        ids = torch.stack([received[layer][0] for layer in layers]).index_select(1, slots)
        weights = torch.stack([received[layer][1] for layer in layers]).index_select(1, slots)
        check_decisions(layers, ids, weights)
        host_ids, host_weights = ids.to(torch.int16).cpu().numpy(), weights.cpu().numpy()
        for index, layer in enumerate(layers):
            scores = received[layer][2]
            recorded[layer] = RecordedLayer(
                place=layer,
                experts=host_ids[index],
                weights=host_weights[index],
                scores=None if scores is None else scores[slots].cpu().numpy(),
            )
    return recorded


def _layer_frame(call: RecordedCall, recorded: RecordedLayer) -> pd.DataFrame:
    import pandas as pd

    num_tokens, top_k = recorded.experts.shape
    order = np.argsort(-recorded.weights, axis=1, kind="stable")
    return pd.DataFrame(
        {
            "call": call.call,
            "batch_index": np.repeat(call.batch_index, top_k),
            "position": np.repeat(call.position, top_k),
            "stack": recorded.place.stack,
            "layer": recorded.place.layer,
            "module": recorded.place.experts_path,
            "rank": np.tile(np.arange(top_k), num_tokens),
            "expert": np.take_along_axis(recorded.experts, order, axis=1).ravel(),
            "weight": np.take_along_axis(recorded.weights, order, axis=1).ravel(),
        }
    )
