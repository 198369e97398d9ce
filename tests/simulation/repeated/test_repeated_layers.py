"""Layers that repeat an earlier one instead of running, and the stand-ins they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from moetool.simulation.repeated.observers import LayerVisit
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.simulation.repeated.layers import (
    NUM_LAYERS,
    Layer,
    Model,
    Observer,
    give_a_buffer,
    layer_of,
    ran,
    run,
)


def test_equal_layers_run_once(model: Model) -> None:
    assert run(model) == [0]
    assert run(model, cache=DynamicCache()) == [0]


def test_observers_hear_of_every_layer(model: Model) -> None:
    observers = [Observer(), Observer()]
    with RepeatedLayers(model, observers=observers):
        model(torch.empty(1, 5, 8, device="meta"))
    assert [observer.num_layers for observer in observers] == [NUM_LAYERS] * 2


def test_observers_see_what_a_layer_is_given_and_finds_in_its_slot(model: Model) -> None:
    observer, cache = Observer(), DynamicCache()
    kept = torch.empty(1, 1, 3, 8, device="meta")
    for index in range(NUM_LAYERS):
        cache.update(kept, kept, index)
    slots: list[Any] = list(cache.layers)
    found = [(slot.keys, slot.values) for slot in slots]
    mask, hidden = torch.empty(5, device="meta"), torch.empty(1, 5, 8, device="meta")
    with torch.inference_mode(), RepeatedLayers(model, observers=[observer]):
        model(hidden, mask=mask, cache=cache)
    visits = observer.begun + observer.repeated
    assert [visit.path for visit in visits] == [f"layers.{index}" for index in range(NUM_LAYERS)]
    assert visits[0].found[0] is hidden
    for visit, kept_for_layer in zip(visits, found, strict=True):
        for tensor in (mask, *kept_for_layer):
            assert any(other is tensor for other in visit.found)


def test_observers_see_what_stands_for_what_a_layer_leaves_behind(model: Model) -> None:
    observer, cache = Observer(), DynamicCache()
    with torch.inference_mode(), RepeatedLayers(model, observers=[observer]):
        output = model(torch.empty(1, 5, 8, device="meta"), cache=cache)
    (left,) = observer.left
    assert len(observer.stand_ins) == NUM_LAYERS - 1
    slots: list[Any] = list(cache.layers)
    for slot, stand_ins in zip(slots[1:], observer.stand_ins, strict=True):
        assert {index: tensor.shape for index, tensor in stand_ins.items()} == {
            index: tensor.shape for index, tensor in enumerate(left)
        }
        assert any(tensor is slot.keys for tensor in stand_ins.values())
    assert any(tensor is output for tensor in observer.stand_ins[-1].values())


def test_layers_that_an_observer_tells_apart_all_run(model: Model) -> None:
    class Picky(Observer):
        def describe(self, visit: LayerVisit) -> object:
            return visit.path in ("layers.2", "layers.3")

    with RepeatedLayers(model, observers=[Observer(), Picky()]):
        model(torch.empty(1, 5, 8, device="meta"))
    assert ran == [0, 2]


def test_a_layer_of_which_an_observer_takes_nothing_stands_for_no_other(model: Model) -> None:
    class Refusing(Observer):
        def end_layer(self, mark: int, left: Sequence[torch.Tensor]) -> None:
            super().end_layer(mark, left)

    with RepeatedLayers(model, observers=[Observer(), Refusing()]):
        model(torch.empty(1, 5, 8, device="meta"))
    assert ran == list(range(NUM_LAYERS))


def give_other_width(layer: Any) -> None:
    layer.projection = nn.Linear(8, 8, bias=False, device="meta")


def give_other_dtype(layer: Any) -> None:
    layer.projection.bias = nn.Parameter(torch.empty(8, dtype=torch.float64, device="meta"))
    layer.projection.weight = nn.Parameter(torch.empty(8, 8, dtype=torch.float64, device="meta"))
    layer.act = lambda hidden: hidden.float()
    layer.projection.forward = lambda hidden: hidden


def give_other_attribute(layer: Any) -> None:
    layer.window = 5


def give_other_function(layer: Any) -> None:
    layer.act = torch.tanh


def give_other_class(layer: Any) -> None:
    layer.__class__ = type("OtherLayer", (Layer,), {})


def give_other_mode(layer: Any) -> None:
    layer.projection.training = False


@pytest.mark.parametrize(
    "change",
    [
        give_other_width,
        give_other_dtype,
        give_other_attribute,
        give_other_function,
        give_other_class,
        give_a_buffer,
        give_other_mode,
    ],
)
def test_a_layer_that_is_built_differently_runs(
    model: Model, change: Callable[[Any], None]
) -> None:
    change(layer_of(model, 2))
    assert run(model) == [0, 2]


def test_a_layer_of_which_the_configuration_says_something_else_runs(model: Model) -> None:
    model.config.layer_types = ["full", "full", "sliding", "full"]
    assert run(model) == [0, 2]
    model.config.layer_types = {3: "sliding"}
    assert run(model) == [0, 3]


def test_the_layers_numbers_and_the_labels_in_the_configuration_mean_nothing(model: Model) -> None:
    model.config.moe_layers = list(range(NUM_LAYERS))
    model.config.too_few_for_layers = ["first", "second"]
    assert len(model.config.id2label) == 2
    assert run(model) == [0]


def test_a_layer_that_is_called_differently_runs(model: Model) -> None:
    mask, wider = torch.empty(5, device="meta"), torch.empty(6, device="meta")
    hidden = torch.empty(1, 5, 8, device="meta")
    calls: list[dict[str, Any]] = [
        {"mask": mask},
        {"mask": torch.empty(5, device="meta")},
        {"mask": wider},
        {"mask": mask.double()},
        {"mask": mask, "window": 3},
        {"mask": mask, "window": 4},
        {"mask": mask, "window": 1},
        {"mask": mask, "window": True},
        {"mask": [mask]},
        {"mask": (mask,)},
        {"mask": None},
    ]
    with RepeatedLayers(model, observers=[]) as layers:
        for given in calls:
            layer_of(model, 0)(hidden, **given)
        layer_of(model, 1)(hidden[:, :4], mask=mask)
    assert layers.num_run == len(calls)
    assert layers.num_repeated == 1


def test_what_a_layer_was_given_it_hands_on(model: Model) -> None:
    hidden = torch.empty(1, 5, 8, device="meta")
    first, second = torch.empty(5, device="meta"), torch.empty(5, device="meta")
    with RepeatedLayers(model, observers=[]) as layers:
        assert layer_of(model, 0)(hidden, mask=first)[1] is first
        output, mask = layer_of(model, 1)(hidden, mask=second)
    assert layers.num_repeated == 1
    assert mask is second
    assert output is not hidden
    assert (output.shape, output.dtype) == (hidden.shape, hidden.dtype)


def test_slots_of_layers_that_do_not_run_are_filled_like_those_of_layers_that_do(
    model: Model,
) -> None:
    hidden = torch.empty(1, 5, 8, device="meta")
    cache = DynamicCache()
    with torch.inference_mode(), RepeatedLayers(model, observers=[]) as layers:
        model(hidden, cache=cache)
        assert [cache.get_seq_length(index) for index in range(NUM_LAYERS)] == [5] * NUM_LAYERS
        model(torch.empty(1, 1, 8, device="meta"), cache=cache)
    assert ran == [0, 0]
    assert layers.num_repeated == 6
    slots: list[Any] = list(cache.layers)
    assert [tuple(slot.keys.shape) for slot in slots] == [(1, 1, 6, 8)] * NUM_LAYERS
    assert len({id(slot.keys) for slot in slots}) == NUM_LAYERS


def test_slots_of_layers_that_keep_nothing_are_filled_as_the_cache_fills_them(model: Model) -> None:
    for index in (0, 2):
        layer_of(model, index).keeps_keys = False
    cache = DynamicCache()
    assert run(model, cache=cache) == [0, 1]
    assert [type(slot) for slot in cache.layers] == [DynamicLayer] * NUM_LAYERS
    assert [cache.get_seq_length(index) for index in range(NUM_LAYERS)] == [0, 5, 0, 5]


def test_a_layer_that_finds_something_else_in_its_slot_runs(model: Model) -> None:
    cache = DynamicCache()
    for index in range(NUM_LAYERS):
        keys = torch.empty(1, 1, 3 if index == 2 else 2, 8, device="meta")
        cache.update(keys, keys, index)
    assert run(model, cache=cache) == [0, 2]


def test_a_layer_without_an_index_of_its_own_runs_where_there_is_a_cache(model: Model) -> None:
    for index in range(NUM_LAYERS):
        layer_of(model, index).layer_idx = None
    assert run(model) == [-1]
    assert run(model, cache=DynamicCache()) == [-1] * NUM_LAYERS


def test_a_layer_given_two_caches_runs(model: Model) -> None:
    all_run = list(range(NUM_LAYERS))
    assert run(model, cache=DynamicCache(), other_cache=DynamicCache()) == all_run


def test_forwards_are_put_back(model: Model) -> None:
    own = layer_of(model, 1).forward
    layer_of(model, 1).forward = own
    with RepeatedLayers(model, observers=[]):
        assert "forward" in vars(layer_of(model, 0))
    assert "forward" not in vars(layer_of(model, 0))
    assert layer_of(model, 1).forward is own


def test_an_error_passes_through_and_forwards_are_put_back(model: Model) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    layer_of(model, 0).does = fail
    with pytest.raises(ValueError, match="no"), RepeatedLayers(model, observers=[]):
        model(torch.empty(1, 5, 8, device="meta"))
    assert "forward" not in vars(layer_of(model, 0))
