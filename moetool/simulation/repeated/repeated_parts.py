"""Parts of layers that run, which run once themselves: experts do the same in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.walk import is_called, join_path, walk_modules
from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.layouts import is_plain, read_layout
from moetool.simulation.meta.replaced import replacing_forward
from moetool.simulation.repeated.cache_slots import SlotTemplates
from moetool.simulation.repeated.fingerprints import is_tensor_or_plain
from moetool.simulation.repeated.layer_outcomes import Layer, LayerOutcomes, Outcome
from moetool.simulation.repeated.module_changes import NO_CHANGES, LayerState
from moetool.simulation.repeated.observers import LayerVisit, PartObserver
from moetool.simulation.repeated.templates import StandIns, TemplateMaker, find_leaves

# To describe a larger one takes as long as to run it.
_MOST_MODULES = 32


@dataclass(frozen=True)
class _Part:
    """A module in a layer.

    Attributes:
        layer_path: The layer's path in the model.
        path: Its own path in the layer.
        forward: Its own forward.
    """

    layer_path: str
    path: str
    module: nn.Module
    forward: Callable[..., Any]


class RepeatedParts:
    """Lets a part of a layer that runs return tensors shaped like those of an earlier call.

    A layer whose cache has grown runs again, but its experts are given what they were given before.
    The same applies to layers that differ in their attention alone.

    A part is a module in a layer that itself holds modules. Two calls of parts do the same if the
    parts have the same path in their layers; the same modules, attributes, and shapes and dtypes of
    parameters and buffers; and are called with values of the same structure, shapes and dtypes, of
    which the same share memory. This decides on all that a part does, unless it reads values. So a
    part runs if it is given a tensor of known values, or anything but tensors and plain values, such
    as a cache. An outcome is not kept if the part read values, changed itself or what it was given,
    or left behind anything but new tensors of unknown values, each alone in its memory.

    Args:
        observer: Measures the work of parts.
        known: Knows which tensors have known values, and how many were read.
        outcomes: Outcomes of earlier calls.
    """

    def __init__(self, observer: PartObserver, known: KnownValues, outcomes: LayerOutcomes) -> None:
        self._observer = observer
        self._known = known
        self._outcomes = outcomes
        self._fingerprints = outcomes.fingerprints

    @contextmanager
    def repeating_in(self, layer: Layer) -> Iterator[None]:
        """Run none of a layer's parts that do what an earlier one did."""
        with self._repeating_in(layer.module, layer_path=layer.path, path=""):
            yield

    @contextmanager
    def _repeating_in(self, module: nn.Module, *, layer_path: str, path: str) -> Iterator[None]:
        with ExitStack() as stack:
            for name, child in module._modules.items():
                if child is not None and _is_part(child):
                    part = _Part(layer_path, join_path(path, name), child, child.forward)
                    stack.enter_context(replacing_forward(child, self._stand_in_for(part)))
            yield

    def _stand_in_for(self, part: _Part) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(part, args, kwargs)

        return forward

    def _call(self, part: _Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = tuple(find_leaves([args, kwargs]))
        tensors = tuple(value for value in given if isinstance(value, torch.Tensor))
        if (
            not all(map(is_tensor_or_plain, given))
            or not all(map(is_plain, tensors))
            or self._known.count_known(tensors)
        ):
            return self._run(part, args, kwargs)
        visit = LayerVisit(part.layer_path, tensors)
        modules = ModelModules(part.module)
        fingerprint = self._fingerprints.of_layer(modules)
        described = self._fingerprints.of_value((args, kwargs))
        kind = self._outcomes.find_kind(fingerprint)
        key = ("part", part.path, kind, described, self._observer.describe(visit))
        outcome = self._outcomes.find(key)
        if outcome is not None and self._observer.can_repeat_part(outcome.done[0]):
            return self._repeat(outcome, visit, given)
        maker, state = TemplateMaker(given), _mark_state(modules)
        mark, num_reads = self._observer.begin_part(visit), self._known.num_reads
        try:
            result = self._run(part, args, kwargs)
        except BaseException:
            self._observer.end_part(mark, ())
            raise
        template = maker.make(result) if maker.can_make(result) else None
        done = self._observer.end_part(mark, maker.made)
        if (
            template is not None
            and done is not None
            and self._known.num_reads == num_reads
            and self._are_new(maker.made)
            and self._fingerprints.of_value((args, kwargs)) == described
            and self._fingerprints.of_layer(ModelModules(part.module)) == fingerprint
            and not state.find_replaced()
        ):
            outcome = Outcome(template, SlotTemplates(), NO_CHANGES, kind, (done,))
            self._outcomes.keep(key, outcome)
        return result

    def _run(self, part: _Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._repeating_in(part.module, layer_path=part.layer_path, path=part.path):
            return part.forward(*args, **kwargs)

    def _repeat(self, outcome: Outcome, visit: LayerVisit, given: tuple[object, ...]) -> Any:
        """Return stand-ins for the result of a part that does the same as an earlier one."""
        stand_ins = StandIns(given)
        with (
            self._observer.repeat_layer(visit, outcome.done[0], stand_ins.made),
            torch._C._DisableTorchDispatch(),
        ):
            return stand_ins.make(outcome.result)

    def _are_new(self, left: Sequence[torch.Tensor]) -> bool:
        """Return whether tensors have unknown values and fill their memory, which they don't share."""
        return (
            not self._known.count_known(left)
            and len({tensor.untyped_storage()._cdata for tensor in left}) == len(left)
            and all(
                is_plain(tensor)
                and tensor.untyped_storage().nbytes() == read_layout(tensor).num_bytes
                for tensor in left
            )
        )


def _is_part(module: nn.Module) -> bool:
    """Return whether a module holds modules, but not too many."""
    # A module without others takes a few operations, which are soon done.
    if not module._modules or not is_called(module):
        return False
    return len(list(islice(walk_modules(module), _MOST_MODULES + 1))) <= _MOST_MODULES


def _mark_state(modules: ModelModules) -> LayerState:
    """Return the state of modules, without keeping their tensors alive."""
    return LayerState(modules, changed=set(modules.by_path.values()))
