"""Run layers that are the same only once: 61 layers of 2 kinds then take the time of 2."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Self

import torch
from torch import nn
from transformers.cache_utils import Cache

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.meta.replaced import replacing_forward
from moetool.simulation.repeated.cache_slots import CacheSlots, SlotTemplates
from moetool.simulation.repeated.fingerprints import find_differences, is_transparent
from moetool.simulation.repeated.layer_outcomes import Layer, LayerOutcomes, Outcome
from moetool.simulation.repeated.module_changes import NO_CHANGES, LayerState, ModuleChanges
from moetool.simulation.repeated.observers import LayerObserver, LayerVisit
from moetool.simulation.repeated.repeated_parts import RepeatedParts
from moetool.simulation.repeated.templates import StandIns, TemplateMaker, find_leaves


class RepeatedLayers:
    """Lets a layer that is the same as one already run return tensors shaped like that one's.

        with RepeatedLayers(model, observers=[counter]):
            model(input_ids)

    Two layers are the same if they have the same modules, attributes (except their own index, and
    with what their configuration says at that index) and shapes and dtypes of parameters and
    buffers; are called with values of the same structure, shapes and dtypes; and find the same in
    their slot of the cache. The cache is then filled, and the layer's own modules are changed, as
    the first layer did. A layer that changes another layer's slot, what it was given, or its own
    modules in a way that has no template runs each time.

    The tensors hold no data: this is for the meta device. Hooks inside a layer that does not run
    are not called. Attributes and parameters that layers changed are restored at the end.

    Attributes:
        num_run: Calls of layers that ran.
        num_repeated: Calls of layers that were the same as an earlier one.

    Args:
        model: The model, on the meta device, or its modules if they are known.
        observers: Observers of the layers, run or not.
        outcomes: Outcomes of earlier runs; None to start without any.
        parts: Repeats parts of the layers that run; None to run them whole.
        on_layer: Receives the path of each layer that is called.
    """

    # The steps of a call, in order:
    # 1. `_call` describes it: the kind of the layer, its arguments, what its slot of the cache
    #    holds, and whatever else matters to an observer. A call that can't be described runs.
    # 2. Nothing with this description ran before: `_run` calls the layer's own forward between
    #    `begin_layer` and `end_layer` of the observers.
    # 3. `_run` then compares the layer, its arguments and the rest of the cache with what they were,
    #    and makes templates of what the layer returned, put into its slot and changed in its
    #    modules. If something has no template, or an observer refuses, the outcome isn't kept.
    # 4. Something with this description did run: `_repeat` makes stand-ins from its templates and
    #    has the observers record what they saw then as done once more (`repeat_layer`).

    def __init__(
        self,
        model: nn.Module | ModelModules,
        *,
        observers: Sequence[LayerObserver],
        outcomes: LayerOutcomes | None = None,
        parts: RepeatedParts | None = None,
        on_layer: Callable[[str], None] | None = None,
    ) -> None:
        self.num_run = 0
        self.num_repeated = 0
        self._modules = ModelModules.of(model)
        self._observers = observers
        self._parts = parts
        self._on_layer = on_layer
        self._outcomes = LayerOutcomes() if outcomes is None else outcomes
        self._fingerprints = self._outcomes.fingerprints
        # By the path of each layer that was called: its kind now, None if it has to be found anew.
        self._kinds: dict[str, int | None] = {}
        # The modules to be restored at the end, of all layers: two may share one.
        self._changed: set[nn.Module] = set()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        for module in _find_layers(self._modules.model):
            layer = Layer(self._modules.path_by_id[id(module)], module, module.forward)
            self._exit.enter_context(replacing_forward(module, self._stand_in_for(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _stand_in_for(self, layer: Layer) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(layer, args, kwargs)

        return forward

    def _call(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._on_layer is not None:
            self._on_layer(layer.path)
        given = tuple(find_leaves([args, kwargs]))
        caches = {id(value): value for value in given if isinstance(value, Cache)}
        indices = self._outcomes.find_indices(layer) if caches else ()
        slots = [CacheSlots(cache, indices) for cache in caches.values()]
        is_known = all(isinstance(value, Cache) or is_transparent(value) for value in given)
        if len(slots) > 1 or not is_known or not all(slot.is_known for slot in slots):
            return self._run_undescribed(layer, args, kwargs)
        slot = slots[0] if slots else None
        kind = self._find_kind(layer)
        key = (
            kind,
            self._fingerprints.of_value((args, kwargs)),
            slot.describe(self._fingerprints) if slot else None,
            self._describe_visit(layer, given, slot=slot),
        )
        outcome = self._outcomes.find(key)
        if outcome is None or (slot and not slot.can_take(outcome.slots)):
            return self._run(layer, args, kwargs, slot=slot, given=given, key=key, kind=kind)
        self.num_repeated += 1
        self._outcomes.repeated_paths.add(layer.path)
        return self._repeat(layer, outcome, slot=slot, given=given)

    def _describe_visit(
        self, layer: Layer, given: tuple[object, ...], *, slot: CacheSlots | None
    ) -> Hashable:
        visit = _visit(layer, given, slot=slot)
        return tuple(observer.describe(visit) for observer in self._observers)

    def _find_kind(self, layer: Layer) -> int:
        """Return the kind that a layer is now."""
        if layer.path not in self._kinds:
            self._kinds[layer.path] = self._outcomes.find_kind_at_start(layer)
        kind = self._kinds[layer.path]
        if kind is None:
            kind = self._outcomes.find_kind(self._outcomes.describe(layer))
            self._kinds[layer.path] = kind
        return kind

    def _run_undescribed(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer without looking at its changes. They are undone at the end."""
        self.num_run += 1
        modules = self._outcomes.find_modules(layer)
        unchanged = {
            path for path, module in modules.by_path.items() if module not in self._changed
        }
        self._restore_at_end(layer, LayerState(modules, paths=unchanged))
        self._lose_kind(layer)
        return layer.forward(*args, **kwargs)

    def _lose_kind(self, layer: Layer) -> None:
        """Find a layer's kind anew before its next call, and at the start of the next run."""
        self._kinds[layer.path] = None
        self._outcomes.forget_kind_at_start(layer)

    def _restore_at_end(self, layer: Layer, state: LayerState) -> None:
        """Restore a state at the end, except what an earlier state restores."""

        def restore() -> None:
            if not state.restore():
                self._outcomes.forget_kind_at_start(layer)

        originals = state.original_modules
        if originals:
            self._changed |= originals
            self._exit.callback(restore)

    def _run(
        self,
        layer: Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        slot: CacheSlots | None,
        given: tuple[object, ...],
        key: Hashable,
        kind: int,
    ) -> Any:
        """Run a layer, and keep its outcome if it can stand for that of another layer."""
        self.num_run += 1
        lengths = slot.measure() if slot else {}

        def describe_surroundings() -> tuple[Hashable, list[object] | None]:
            return (
                self._fingerprints.of_value((args, kwargs)),
                slot.describe_rest(self._fingerprints, lengths=lengths) if slot else None,
            )

        before = describe_surroundings()
        state = LayerState(self._outcomes.find_modules(layer), changed=self._changed)
        # The tensors in the layer's slot die while it runs: no reference here may keep them alive.
        marks = [
            observer.begin_layer(_visit(layer, given, slot=slot)) for observer in self._observers
        ]
        try:
            with nullcontext() if self._parts is None else self._parts.repeating_in(layer):
                result = layer.forward(*args, **kwargs)
        except BaseException:
            self._restore_at_end(layer, state)
            self._lose_kind(layer)
            raise
        maker = TemplateMaker(given)
        kind_after, changes = self._take_changes(layer, kind, state, maker)
        can_make = (
            changes is not None and describe_surroundings() == before and maker.can_make(result)
        )
        slots = (
            slot.make_templates(maker, lengths=lengths) if slot and can_make else SlotTemplates()
        )
        template = maker.make(result) if can_make else None
        done = tuple(
            observer.end_layer(mark, maker.made)
            for observer, mark in zip(self._observers, marks, strict=True)
        )
        if changes is not None and can_make and all(what is not None for what in done):
            self._outcomes.keep(key, Outcome(template, slots, changes, kind_after, done))
        return result

    def _take_changes(
        self, layer: Layer, kind: int, state: LayerState, maker: TemplateMaker
    ) -> tuple[int, ModuleChanges | None]:
        """Return a layer's new kind and its changes to its own modules.

        The changes are None if they have no template. They are undone at the end.
        """
        before = self._outcomes.fingerprint_of(kind)
        after = self._outcomes.describe(layer)
        replaced = state.find_replaced()
        if after == before and not replaced:
            return kind, NO_CHANGES
        self._restore_at_end(layer, state)
        kind_after = self._outcomes.find_kind(after)
        self._kinds[layer.path] = kind_after
        differences = find_differences(before, after)
        changes = None
        # A tensor replaced by one like it dies in the next call, which looks the same as this one.
        if differences is not None and replaced <= set(differences):
            changes = state.find_changes(maker, differences)
        if changes is None:
            self._outcomes.forget_kind_at_start(layer)
        return kind_after, changes

    def _repeat(
        self,
        layer: Layer,
        outcome: Outcome,
        *,
        slot: CacheSlots | None,
        given: tuple[object, ...],
    ) -> Any:
        """Return stand-ins for the result of a layer that does the same as an earlier one."""
        stand_ins = StandIns(given)
        if paths := outcome.changes.paths:
            modules = self._outcomes.find_modules(layer)
            state = LayerState(modules, paths=paths, changed=self._changed)
            self._restore_at_end(layer, state)
        with ExitStack() as stack:
            for observer, done in zip(self._observers, outcome.done, strict=True):
                visit = _visit(layer, given, slot=slot)
                stack.enter_context(observer.repeat_layer(visit, done, stand_ins.made))
                del visit
            # Making stand-ins is not the model's work, and modes would slow it down.
            with torch._C._DisableTorchDispatch():
                outcome.changes.apply(layer.module, stand_ins)
                self._kinds[layer.path] = outcome.kind
                if slot:
                    slot.fill(outcome.slots, stand_ins=stand_ins)
                return stand_ins.make(outcome.result)


def _visit(layer: Layer, given: tuple[object, ...], *, slot: CacheSlots | None) -> LayerVisit:
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
