"""Run layers that are the same once: 61 layers of 2 kinds then take the time of 2."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import nn
from transformers.cache_utils import Cache

from moetool.simulation.cache_slots import CacheSlots, SlotMolds
from moetool.simulation.fingerprints import Fingerprints, find_layer_indices, is_transparent
from moetool.simulation.molds import Caster, MoldMaker, find_leaves


class LayerObserver(Protocol):
    """Whoever measures what layers do, and has to be told of those that don't run."""

    def begin_layer(self) -> Any:
        """Return a mark of where a layer begins."""

    def end_layer(self, mark: Any) -> Any:
        """Return what was done since a mark."""

    def repeat_layer(self, done: Any) -> None:
        """Take it that a layer did what an earlier one did."""


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
        module: The layer.
        forward: Its own forward.
        kind: What it shares with all layers that are built the same.
        indices: Its layer indices.
    """

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
        for module in _find_layers(self._model):
            kind = kinds.setdefault(self._fingerprints.of_layer(module), len(kinds))
            layer = _Layer(module, module.forward, kind, find_layer_indices(module))
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
        )
        outcome = self._outcomes.get(key)
        if outcome is None or (slot and not slot.can_take(outcome.slots)):
            return self._run(layer, args, kwargs, slot=slot, given=given, key=key)
        self.num_repeated += 1
        return self._repeat(outcome, slot=slot, given=given)

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
        marks = [observer.begin_layer() for observer in self._observers]
        result = layer.forward(*args, **kwargs)
        done = tuple(
            observer.end_layer(mark) for observer, mark in zip(self._observers, marks, strict=True)
        )
        maker = MoldMaker(given)
        if describe_surroundings() == before and maker.can_take(result):
            slots = slot.take_molds(maker, lengths=lengths) if slot else SlotMolds()
            self._outcomes[key] = _Outcome(maker.take(result), slots, done)
        return result

    def _repeat(
        self, outcome: _Outcome, *, slot: CacheSlots | None, given: tuple[object, ...]
    ) -> Any:
        """Return what a layer returns that is given `given` and does what an earlier one did."""
        caster = Caster(given)
        for observer, done in zip(self._observers, outcome.done, strict=True):
            observer.repeat_layer(done)
        if slot:
            slot.fill(outcome.slots, caster=caster)
        return caster.cast(outcome.result)


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
