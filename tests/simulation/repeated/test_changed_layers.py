"""Layers that change themselves or what they are given, and what is restored afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import EncoderDecoderCache

from moetool.simulation.repeated.layer_outcomes import LayerOutcomes
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from tests.simulation.repeated.layers import (
    NUM_LAYERS,
    Layer,
    Model,
    Observer,
    give_a_buffer,
    layer_of,
    let_each,
    ran,
    run,
)


def change_itself(layer: Any, *_: object, **__: object) -> None:
    layer.seen.append(1)


def hold_in_float64(layer: Any, *_: object, **__: object) -> None:
    layer.held_in = torch.float64
    for name in ("weight", "bias"):
        parameter = getattr(layer.projection, name)
        if parameter.dtype != layer.held_in:
            setattr(layer.projection, name, nn.Parameter(parameter.to(layer.held_in)))


def change_dtype_in_place(layer: Any, *_: object, **__: object) -> None:
    for parameter in layer.projection.parameters():
        parameter.data = torch.empty(parameter.shape, dtype=torch.float64, device="meta")


def change_another_slot(layer: Any, hidden: torch.Tensor, *, cache: Any, **_: object) -> None:
    keys = hidden[:, None]
    cache.update(keys, keys, (layer.layer_idx + 2) % NUM_LAYERS)


def change_what_it_is_given(_: Any, hidden: torch.Tensor, *, notes: Any, **__: object) -> None:
    notes[len(notes)] = hidden


def test_a_layer_that_changes_itself_runs_each_time(model: Model) -> None:
    let_each(model, change_itself)
    assert run(model) == list(range(NUM_LAYERS))


def test_layers_that_do_not_run_are_changed_like_those_that_do_until_the_end(model: Model) -> None:
    let_each(model, hold_in_float64)
    weights = [layer_of(model, index).projection.weight for index in range(NUM_LAYERS)]
    observer, hidden = Observer(), torch.empty(1, 5, 8, dtype=torch.float64, device="meta")
    with RepeatedLayers(model, observers=[observer]):
        for num_calls in (1, 2):
            model(hidden)
            assert ran == [0] * num_calls
            for index in range(NUM_LAYERS):
                layer = layer_of(model, index)
                assert layer.held_in == layer.projection.weight.dtype == torch.float64
                assert isinstance(layer.projection.weight, nn.Parameter)
    # Its output, its weight and its bias.
    assert [len(left) for left in observer.left] == [3, 1]
    assert [layer_of(model, index).projection.weight for index in range(NUM_LAYERS)] == weights
    assert not any("held_in" in vars(layer) for layer in model.layers)


def test_a_layer_that_changes_its_weights_in_place_runs_each_time(model: Model) -> None:
    let_each(model, change_dtype_in_place)
    with RepeatedLayers(model, observers=[]) as layers:
        model(torch.empty(1, 5, 8, dtype=torch.float64, device="meta"))
    assert (layers.num_run, layers.num_repeated) == (NUM_LAYERS, 0)


def replace_by_equal_ones(layer: Any, *_: object, **__: object) -> None:
    layer.projection.weight = nn.Parameter(torch.empty_like(layer.projection.weight))
    layer.scale = torch.empty_like(layer.scale)


def test_parameters_and_buffers_replaced_by_equal_ones_are_restored(model: Model) -> None:
    let_each(model, replace_by_equal_ones)
    for index in range(NUM_LAYERS):
        give_a_buffer(layer_of(model, index))

    def find_held() -> list[torch.Tensor]:
        return [*model.parameters(), *model.buffers()]

    before = find_held()
    assert run(model) == list(range(NUM_LAYERS))
    assert list(map(id, find_held())) == list(map(id, before))


def keep_output(layer: Any, hidden: torch.Tensor, **_: object) -> None:
    layer.last = hidden + 1


@pytest.mark.parametrize("is_held_elsewhere", [False, True])
def test_a_tensor_in_an_attribute_is_restored_if_it_is_still_alive(
    model: Model, is_held_elsewhere: bool
) -> None:
    """If it isn't, the next run finds other layers than the one before."""
    let_each(model, keep_output)
    outcomes, held = LayerOutcomes(), []
    for index in range(NUM_LAYERS):
        last = torch.empty(2, device="meta")
        layer_of(model, index).last = last
        if is_held_elsewhere:
            held.append(last)
    del last
    ran.clear()
    with RepeatedLayers(model, observers=[], outcomes=outcomes):
        model(torch.empty(1, 5, 8, device="meta"))
    assert ran == [0]
    found = [layer_of(model, index).last for index in range(NUM_LAYERS)]
    if is_held_elsewhere:
        assert list(map(id, found)) == list(map(id, held))
    else:
        assert [tuple(last.shape) for last in found] == [(1, 5, 8)] * NUM_LAYERS
    with RepeatedLayers(model, observers=[], outcomes=outcomes):
        model(torch.empty(1, 5, 8, device="meta"))
    assert ran == ([0] if is_held_elsewhere else [0, 0])


def test_a_layer_whose_call_cannot_be_described_is_restored(model: Model) -> None:
    let_each(model, hold_in_float64)
    before = list(model.parameters())
    hidden = torch.empty(1, 5, 8, dtype=torch.float64, device="meta")
    with RepeatedLayers(model, observers=[]):
        for _ in range(2):
            model(hidden, secret=object())
    assert ran == 2 * list(range(NUM_LAYERS))
    assert list(map(id, model.parameters())) == list(map(id, before))
    assert not any("held_in" in vars(layer) for layer in model.layers)


def test_modules_changed_in_different_calls_are_all_restored(model: Model) -> None:
    """A layer that does not run changes only itself; then a call changes its projection."""

    def change(layer: Any, *_: object, secret: object = None, **__: object) -> None:
        if secret is None:
            layer.window = 5
        else:
            layer.projection.scale = 2

    let_each(model, change)
    hidden = torch.empty(1, 5, 8, device="meta")
    with RepeatedLayers(model, observers=[]) as layers:
        model(hidden)
        assert layers.num_repeated == NUM_LAYERS - 1
        model(hidden, secret=object())
    held = {name for module in model.modules() for name in vars(module)}
    assert not held & {"window", "scale"}


def test_a_layer_changed_in_a_call_that_cannot_be_described_is_another_afterwards(
    model: Model,
) -> None:
    def widen(layer: Any, *_: object, secret: object = None, **__: object) -> None:
        if secret is not None:
            layer.window = 5

    let_each(model, widen)
    hidden = torch.empty(1, 5, 8, device="meta")
    with RepeatedLayers(model, observers=[]):
        model(hidden)
        layer_of(model, 1)(hidden, secret=object())
        model(hidden)
    assert ran == [0, 1, 1]


def test_a_layer_that_raised_after_a_change_is_another_afterwards(model: Model) -> None:
    def change_and_fail(layer: Any, *_: object, is_last: bool = True, **__: object) -> None:
        if not is_last:
            layer.window = 5
            raise ValueError("no")

    let_each(model, change_and_fail)
    hidden = torch.empty(1, 5, 8, device="meta")
    with RepeatedLayers(model, observers=[]):
        model(hidden)
        with pytest.raises(ValueError, match="no"):
            layer_of(model, 1)(hidden, is_last=False)
        model(hidden)
    assert ran == [0, 1, 1]
    assert not any("window" in vars(layer) for layer in model.layers)


def test_runs_that_share_outcomes_repeat_each_other_s_layers(model: Model) -> None:
    outcomes, hidden = LayerOutcomes(), torch.empty(1, 5, 8, device="meta")
    let_each(model, lambda layer, *_, **__: vars(layer).update(was_called=True))
    for num_run in (1, 0):
        with RepeatedLayers(model, observers=[], outcomes=outcomes) as layers:
            model(hidden)
        assert (layers.num_run, layers.num_repeated) == (num_run, NUM_LAYERS - num_run)
    assert outcomes.repeated_paths == {f"layers.{index}" for index in range(NUM_LAYERS)}


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_runs_with_caches_of_other_attributes_do_not_share_outcomes(
    model: Model, is_encoder_decoder: bool
) -> None:
    def make_cache(window: int) -> Any:
        cache: Any = DynamicCache()
        cache.window = window
        return EncoderDecoderCache(cache, DynamicCache()) if is_encoder_decoder else cache

    outcomes, hidden = LayerOutcomes(), torch.empty(1, 5, 8, device="meta")
    for index in range(NUM_LAYERS):
        layer_of(model, index).keeps_keys = False
    for window, num_run in ((3, 1), (4, 1), (3, 0)):
        with RepeatedLayers(model, observers=[], outcomes=outcomes) as layers:
            model(hidden, cache=make_cache(window))
        assert layers.num_run == num_run


def test_a_layer_that_raises_is_restored(model: Model) -> None:
    def change_and_fail(layer: Any, *_: object, **__: object) -> None:
        hold_in_float64(layer)
        raise ValueError("no")

    let_each(model, change_and_fail)
    with pytest.raises(ValueError, match="no"), RepeatedLayers(model, observers=[]):
        model(torch.empty(1, 5, 8, device="meta"))
    assert layer_of(model, 0).projection.weight.dtype == torch.float32


def test_a_layer_that_changes_what_it_was_given_runs_each_time(model: Model) -> None:
    let_each(model, change_what_it_is_given)
    assert run(model, notes={}) == list(range(NUM_LAYERS))


@pytest.mark.parametrize("num_kept", [0, 3])
def test_a_layer_that_changes_another_slot_runs_each_time(model: Model, num_kept: int) -> None:
    let_each(model, change_another_slot)
    cache = DynamicCache()
    for index in range(NUM_LAYERS if num_kept else 0):
        keys = torch.empty(1, 1, num_kept, 8, device="meta")
        cache.update(keys, keys, index)
    assert run(model, cache=cache) == list(range(NUM_LAYERS))


def put_keys_of_another_width(entry: Any) -> None:
    entry.keys = torch.empty(1, 1, 2, entry.keys.shape[-1] + 1, device="meta")


def put_keys_of_another_dtype(entry: Any) -> None:
    is_float = entry.keys.dtype == torch.float32
    entry.keys = entry.keys.to(torch.float64 if is_float else torch.float32)


def transpose_keys_in_place(entry: Any) -> None:
    entry.keys.transpose_(-1, -2)


def add_an_attribute(entry: Any) -> None:
    setattr(entry, f"extra_{len(vars(entry))}", None)


def turn_a_number_into_a_flag(entry: Any) -> None:
    entry.number = True if type(entry.number) is int else 1


def count_in_a_dictionary(entry: Any) -> None:
    entry.counts["seen"] += 1


def lengthen_a_buffer(entry: Any) -> None:
    entry.buffers["a"]["b"] = torch.empty(len(entry.buffers["a"]["b"]) + 1, device="meta")


def append_to_a_list(entry: Any) -> None:
    entry.pending.append(1)


def put_back_the_same(entry: Any) -> None:
    entry.keys = torch.empty_like(entry.keys)
    entry.counts = {"seen": 0}


@pytest.mark.parametrize(
    ("change", "is_noticed"),
    [
        (put_keys_of_another_width, True),
        (put_keys_of_another_dtype, True),
        (transpose_keys_in_place, True),
        (add_an_attribute, True),
        (turn_a_number_into_a_flag, True),
        (count_in_a_dictionary, True),
        (lengthen_a_buffer, True),
        (append_to_a_list, True),
        (put_back_the_same, False),
    ],
)
def test_whatever_a_layer_changes_in_an_entry_of_no_layer_is_noticed(
    model: Model, change: Callable[[Any], None], is_noticed: bool
) -> None:
    cache = DynamicCache()
    for index in range(NUM_LAYERS + 1):
        keys = torch.empty(1, 1, 2, 8, device="meta")
        cache.update(keys, keys, index)
    entry: Any = cache.layers[NUM_LAYERS]
    entry.counts, entry.number, entry.pending = {"seen": 0}, 1, []
    entry.buffers = {"a": {"b": torch.empty(1, device="meta")}}
    let_each(model, lambda *_, **__: change(entry))
    assert run(model, cache=cache) == (list(range(NUM_LAYERS)) if is_noticed else [0])


def test_a_layer_given_what_cannot_be_looked_into_runs(model: Model) -> None:
    assert run(model, secret=object()) == [0, 1, 2, 3]
    assert run(model, secret=[{"inner": object()}]) == [0, 1, 2, 3]
    assert run(model, secret=[{"inner": 1.5}]) == [0]


def test_a_layer_that_returns_what_cannot_be_made_again_runs_each_time(model: Model) -> None:
    class Wrapped(Layer):
        def forward(self, hidden: torch.Tensor, **_: Any) -> Any:
            return OrderedDict(hidden=super().forward(hidden)[0])

    for index in range(NUM_LAYERS):
        layer_of(model, index).__class__ = Wrapped
    with RepeatedLayers(model, observers=[]) as layers:
        for index in range(NUM_LAYERS):
            layer_of(model, index)(torch.empty(1, 5, 8, device="meta"))
    assert layers.num_run == NUM_LAYERS
