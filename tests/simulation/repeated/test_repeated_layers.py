"""Layers that repeat an earlier one instead of running, and the stand-ins they leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

from moetool.simulation.repeated.layer_outcomes import LayerOutcomes
from moetool.simulation.repeated.repeated_layers import LayerVisit, RepeatedLayers

NUM_LAYERS = 4


class Layer(nn.Module):
    """Projects, keeps keys in the cache, and returns its mask."""

    def __init__(self, config: PreTrainedConfig, layer_idx: int | None) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.projection = nn.Linear(8, 8)
        self.act = torch.relu
        self.keeps_keys = True
        self.seen: list[int] = []
        self.does: Callable[..., object] = _do_nothing

    def forward(
        self,
        hidden: torch.Tensor,
        *,
        mask: Any = None,
        cache: DynamicCache | None = None,
        **given: Any,
    ) -> Any:
        ran.append(-1 if self.layer_idx is None else self.layer_idx)
        self.does(self, hidden, cache=cache, **given)
        hidden = self.act(self.projection(hidden))
        if cache is not None and self.layer_idx is not None and self.keeps_keys:
            keys = hidden[:, None]
            cache.update(keys, keys, self.layer_idx)
        return hidden, mask


ran: list[int] = []


def _do_nothing(*_: object, **__: object) -> None:
    """Stand for whatever else a layer may do."""


class Model(nn.Module):
    def __init__(self, num_layers: int = NUM_LAYERS) -> None:
        super().__init__()
        self.config: Any = PreTrainedConfig()
        self.config.num_hidden_layers = num_layers
        with torch.device("meta"):
            self.layers = nn.ModuleList(Layer(self.config, index) for index in range(num_layers))

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        for layer in self.layers:
            hidden, _ = layer(hidden, **given)
        return hidden


class Observer:
    """Counts layers, run or not.

    Attributes:
        num_layers: How many there were.
        begun: The visits of those that ran.
        repeated: The visits of those that didn't.
        left: Of those that ran, what they left behind.
        stand_ins: Of those that didn't, what stands for it.
    """

    def __init__(self) -> None:
        self.num_layers = 0
        self.begun: list[LayerVisit] = []
        self.repeated: list[LayerVisit] = []
        self.left: list[list[torch.Tensor]] = []
        self.stand_ins: list[dict[int, torch.Tensor]] = []

    def describe(self, visit: LayerVisit) -> object:
        """Return nothing: layers differ only by what all observers distinguish."""

    def begin_layer(self, visit: LayerVisit) -> int:
        self.begun.append(visit)
        return self.num_layers

    def end_layer(self, mark: int, left: Sequence[torch.Tensor]) -> int | None:
        self.left.append(list(left))
        self.num_layers += 1
        return self.num_layers - mark

    @contextmanager
    def repeat_layer(
        self, visit: LayerVisit, done: int, left: Mapping[int, torch.Tensor]
    ) -> Iterator[None]:
        assert not left
        yield
        self.repeated.append(visit)
        self.stand_ins.append(dict(left))
        self.num_layers += done


@pytest.fixture
def model() -> Model:
    ran.clear()
    return Model()


def run(model: Model, *, length: int = 5, **given: Any) -> list[int]:
    """Return the layers that ran."""
    ran.clear()
    observer = Observer()
    hidden = torch.empty(1, length, 8, device="meta")
    with torch.inference_mode(), RepeatedLayers(model, observers=[observer]) as layers:
        output = model(hidden, **given)
    assert output.shape == hidden.shape
    assert layers.num_run == len(ran)
    assert layers.num_run + layers.num_repeated == len(model.layers)
    return list(ran)


def layer_of(model: Model, index: int) -> Any:
    return model.layers[index]


def let_each(model: Model, does: Callable[..., object]) -> None:
    """Make each layer do something else in its forward."""
    for index in range(len(model.layers)):
        layer_of(model, index).does = does


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


def give_a_buffer(layer: Any) -> None:
    layer.register_buffer("scale", torch.empty(3, device="meta"))


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
