"""Run layers that are the same once: 61 layers of 2 kinds then take the time of 2."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import nn
from transformers.cache_utils import Cache

from moetool.simulation.repeated.cache_slots import CacheSlots, SlotMolds
from moetool.simulation.repeated.fingerprints import (
    Fingerprints,
    find_layer_indices,
    is_transparent,
)
from moetool.simulation.repeated.molds import Caster, MoldMaker, find_leaves


@dataclass(frozen=True)
class LayerVisit:
    """A call of a layer.

    Attributes:
        path: The layer's path in the model.
        found: The tensors that it was given or finds in its slot of the cache.
    """

    path: str
    found: tuple[torch.Tensor, ...]


class LayerObserver(Protocol):
    """Whoever measures what layers do, and has to be told of those that don't run."""

    def describe(self, visit: LayerVisit) -> Hashable:
        """Return what else has to be equal for two visits to be the same to this observer."""

    def begin_layer(self, visit: LayerVisit) -> Any:
        """Return a mark of where a layer begins."""

    def end_layer(self, mark: Any, left: Sequence[torch.Tensor]) -> Any:
        """Return what was done since a mark; None if no other layer can be taken to do the same.

        Args:
            mark: Where the layer began.
            left: The tensors that the layer made and left behind.
        """

    def repeat_layer(
        self, visit: LayerVisit, done: Any, left: Mapping[int, torch.Tensor]
    ) -> AbstractContextManager[object]:
        """Take it that a layer did what an earlier one did.

        Args:
            visit: The layer's call.
            done: What the earlier layer did.
            left: By the time the context is left, by their place in what `end_layer` was given,
                the tensors that stand for those the layer would leave behind.
        """


@dataclass(frozen=True)
class _Outcome:
    """What a layer that ran left behind.

    Attributes:
        result: The mold of what its forward returned.
        slots: The molds of what its cache kept for it.
        done: What each observer saw.
    """

    result: Any
    slots: SlotMolds
    done: tuple[Any, ...]


@dataclass(frozen=True)
class _Layer:
    """A layer whose work may be another's.

    Attributes:
        path: Its path in the model.
        module: The layer.
        forward: Its own forward.
        kind: What it shares with all layers that are built the same.
        indices: Its layer indices.
    """

    path: str
    module: nn.Module
    forward: Callable[..., Any]
    kind: int
    indices: tuple[int, ...]


class RepeatedLayers:
    """Lets a layer that is the same as one already run return tensors shaped like that one's.

        with RepeatedLayers(model, observers=[counter]):
            model(input_ids)

    Two layers are the same if they have the same modules, attributes (but for their own index, and
    with what their configuration says at that index) and shapes and dtypes of parameters and
    buffers; are called with values of the same structure, shapes and dtypes; and find the same in
    their slot of the cache, which is then filled as the first one's was. A layer that changes its
    modules, another layer's slot or what it was given runs each time.

    The tensors hold no data: this is for the meta device. Hooks inside of a layer that does not run
    are not called.

    Attributes:
        num_run: Calls of layers that ran.
        num_repeated: Calls of layers that were the same as an earlier one.

    Args:
        model: The model, on the meta device.
        observers: Who has to know of layers that don't run.
    """

    def __init__(self, model: nn.Module, *, observers: Sequence[LayerObserver]) -> None:
        self.num_run = 0
        self.num_repeated = 0
        self._model = model
        self._observers = observers
        self._fingerprints = Fingerprints()
        self._outcomes: dict[Hashable, _Outcome] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        kinds: dict[Hashable, int] = {}
        paths = {id(module): path for path, module in self._model.named_modules()}
        for module in _find_layers(self._model):
            kind = kinds.setdefault(self._fingerprints.of_layer(module), len(kinds))
            indices = find_layer_indices(module)
            layer = _Layer(paths[id(module)], module, module.forward, kind, indices)
            self._exit.callback(_put_back_forward, module, vars(module).get("forward"))
            module.forward = self._stand_in_for(layer)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _stand_in_for(self, layer: _Layer) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(layer, args, kwargs)

        return forward

    def _call(self, layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = tuple(find_leaves([args, kwargs]))
        caches = {id(value): value for value in given if isinstance(value, Cache)}
        slots = [CacheSlots(cache, layer.indices) for cache in caches.values()]
        is_known = all(isinstance(value, Cache) or is_transparent(value) for value in given)
        if len(slots) > 1 or not is_known or not all(slot.can_be_told_apart for slot in slots):
            self.num_run += 1
            return layer.forward(*args, **kwargs)
        slot = slots[0] if slots else None
        key = (
            layer.kind,
            self._fingerprints.of_value((args, kwargs)),
            slot.describe(self._fingerprints) if slot else None,
            self._describe_visit(layer, given, slot=slot),
        )
        outcome = self._outcomes.get(key)
        if outcome is None or (slot and not slot.can_take(outcome.slots)):
            return self._run(layer, args, kwargs, slot=slot, given=given, key=key)
        self.num_repeated += 1
        return self._repeat(layer, outcome, slot=slot, given=given)

    def _describe_visit(
        self, layer: _Layer, given: tuple[object, ...], *, slot: CacheSlots | None
    ) -> Hashable:
        visit = _visit(layer, given, slot=slot)
        return tuple(observer.describe(visit) for observer in self._observers)

    def _run(
        self,
        layer: _Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        slot: CacheSlots | None,
        given: tuple[object, ...],
        key: Hashable,
    ) -> Any:
        """Run a layer, and keep what it left behind if another can be taken to leave the same."""
        self.num_run += 1
        lengths = slot.measure() if slot else {}

        def describe_surroundings() -> Hashable:
            return (
                self._fingerprints.of_layer(layer.module),
                self._fingerprints.of_value((args, kwargs)),
                slot.describe_rest(self._fingerprints, lengths=lengths) if slot else None,
            )

        before = describe_surroundings()
        # What the layer finds in its slot dies while it runs: nothing here may keep it alive.
        marks = [
            observer.begin_layer(_visit(layer, given, slot=slot)) for observer in self._observers
        ]
        result = layer.forward(*args, **kwargs)
        maker = MoldMaker(given)
        can_take = describe_surroundings() == before and maker.can_take(result)
        slots = slot.take_molds(maker, lengths=lengths) if slot and can_take else SlotMolds()
        mold = maker.take(result) if can_take else None
        done = tuple(
            observer.end_layer(mark, maker.made)
            for observer, mark in zip(self._observers, marks, strict=True)
        )
        if can_take and all(what is not None for what in done):
            self._outcomes[key] = _Outcome(mold, slots, done)
        return result

    def _repeat(
        self,
        layer: _Layer,
        outcome: _Outcome,
        *,
        slot: CacheSlots | None,
        given: tuple[object, ...],
    ) -> Any:
        """Return what a layer returns that is given `given` and does what an earlier one did."""
        caster = Caster(given)
        with ExitStack() as stack:
            for observer, done in zip(self._observers, outcome.done, strict=True):
                visit = _visit(layer, given, slot=slot)
                stack.enter_context(observer.repeat_layer(visit, done, caster.made))
                del visit
            # Stand-ins are no work of the model's: modes need not see them, and that takes a while.
            with torch._C._DisableTorchDispatch():
                if slot:
                    slot.fill(outcome.slots, caster=caster)
                return caster.cast(outcome.result)


def _visit(layer: _Layer, given: tuple[object, ...], *, slot: CacheSlots | None) -> LayerVisit:
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    return LayerVisit(layer.path, (*tensors, *(slot.find_tensors() if slot else ())))


def _find_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists of modules, each once."""
    seen: set[int] = set()

    def visit(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            if not isinstance(child, nn.ModuleList):
                yield from visit(child)
                continue
            for member in child:
                if id(member) not in seen:
                    seen.add(id(member))
                    yield member

    return visit(module)


def _put_back_forward(module: nn.Module, own: Any) -> None:
    """Restore a module's forward: its own attribute, or the class's method for None."""
    del module.forward
    if own is not None:
        module.forward = own
