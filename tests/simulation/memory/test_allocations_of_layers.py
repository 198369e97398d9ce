"""Allocations of a model some of whose layers repeat an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins, Timeline
from moetool.simulation.repeated.observers import LayerVisit
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.simulation.memory.layered_model import Layer, Model, do_nothing, meta
from tests.simulation.memory.memory_runs import Summary, summarize


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


class TellsLayersApart(AllocationRecorder):
    """Lets every layer run."""

    def describe(self, visit: LayerVisit) -> object:
        del visit
        return object()


def record(
    model: Model, recorder_class: type[AllocationRecorder], *, num_calls: int = 2, **given: Any
) -> tuple[Summary, int]:
    """Return a summary of calls of a model, and the number of layers that ran."""
    origins = Origins()
    recorder = recorder_class(model, origins=origins, workspace_bytes=100)
    with RepeatedLayers(model, observers=[recorder]) as layers, recorder:
        for _ in range(num_calls):
            output = model(**given)
            del output
        meta(1)
        events = tuple(recorder.events)
    assert "forward" not in vars(model.layers[0])
    return summarize(Timeline(events, origins.found, (), recorder.workspace_block)), layers.num_run


def return_mask(_: Layer, _hidden: torch.Tensor, mask: Any = None, **__: Any) -> Any:
    return mask


def return_its_input(_: Layer, hidden: torch.Tensor, **__: Any) -> torch.Tensor:
    return hidden


def return_view_of_its_input(_: Layer, hidden: torch.Tensor, **__: Any) -> torch.Tensor:
    return hidden[:, 1:]


def return_two_of_one_memory(_: Layer, hidden: torch.Tensor, **__: Any) -> Any:
    both = torch.cat([hidden, hidden])
    return both[:1], both[1:], hidden + 1


def keep_in_cache(layer: Layer, hidden: torch.Tensor, cache: Any = None, **__: Any) -> None:
    keys = hidden[:, None] * 2
    cache.update(keys, keys.clone(), layer.layer_idx)


def sort_and_multiply(_: Layer, hidden: torch.Tensor, **__: Any) -> torch.Tensor:
    places = hidden.view(-1).sort()[1]
    return places @ places


REPEATED = [
    do_nothing,
    return_mask,
    return_its_input,
    return_view_of_its_input,
    return_two_of_one_memory,
    keep_in_cache,
    sort_and_multiply,
]


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("does", REPEATED)
def test_layers_that_do_not_run_leave_the_same_events(
    does: Callable[..., Any], is_kept: bool
) -> None:
    def given() -> dict[str, Any]:
        return {"is_kept": is_kept, "cache": DynamicCache(), "mask": meta(5)}

    short, num_run = record(Model(does), AllocationRecorder, **given())
    full, num_run_in_full = record(Model(does), TellsLayersApart, **given())
    assert num_run_in_full == 8
    # With a cache, once for each length of it.
    assert num_run == (2 if does is keep_in_cache else 1)
    assert short == full


@pytest.mark.parametrize("held", [0, 2])
def test_what_a_layer_would_free_lives_on_where_someone_else_holds_it(held: int) -> None:
    """Layers replace the tensors in their slots; one of these is held elsewhere."""
    model, cache = Model(keep_in_cache), DynamicCache()
    recorder = AllocationRecorder(model, origins=Origins())
    with RepeatedLayers(model, observers=[recorder]) as layers, recorder:
        model(is_kept=False, cache=cache)
        slots: list[Any] = list(cache.layers)
        keys = [recorder.find_block(slot.keys) for slot in slots]
        holder = slots[held].keys
        del slots
        model(is_kept=False, cache=cache)
        dead = {event.block for event in recorder.events if event.num_bytes < 0}
        assert [block in dead for block in keys] == [place != held for place in range(4)]
        assert recorder.find_block(holder) == keys[held]
        del holder
        assert recorder.events[-1].block == keys[held]
    assert layers.num_run == 2


def keep_beside(layer: Layer, hidden: torch.Tensor, **_: Any) -> None:
    layer.kept[:] = [hidden + 1]


def test_a_layer_that_keeps_memory_beside_what_it_leaves_behind_runs_each_time() -> None:
    short, num_run = record(Model(keep_beside), AllocationRecorder, num_calls=1, is_kept=False)
    full, _ = record(Model(keep_beside), TellsLayersApart, num_calls=1, is_kept=False)
    assert num_run == 4
    assert short == full


def keep_last(layer: Any, hidden: torch.Tensor, **_: Any) -> None:
    layer.last = hidden + 1


def keep_last_in_list(layer: Any, hidden: torch.Tensor, **_: Any) -> None:
    layer.last = [hidden + 1]


def keep_last_in_buffer(layer: Any, hidden: torch.Tensor, **_: Any) -> None:
    layer.register_buffer("last", hidden + 1)


@pytest.mark.parametrize("does", [keep_last, keep_last_in_list, keep_last_in_buffer])
def test_what_a_layer_replaces_at_each_call_dies_as_in_layers_run_each_time(
    does: Callable[..., Any],
) -> None:
    def record_calls(*, is_each_layer_run: bool) -> tuple[Summary, int]:
        model, origins = Model(does), Origins()
        recorder = AllocationRecorder(model, origins=origins)
        layers = RepeatedLayers(model, observers=[recorder])
        with nullcontext() if is_each_layer_run else layers, recorder:
            for _ in range(3):
                model(is_kept=False)
            meta(1)
            events = tuple(recorder.events)
        return summarize(Timeline(events, origins.found, (), None)), layers.num_repeated

    short, num_repeated = record_calls(is_each_layer_run=False)
    full, _ = record_calls(is_each_layer_run=True)
    assert num_repeated >= 3
    assert short == full
