"""Tests of the modules of a model that are kept from one use to the next."""

from collections.abc import Callable

import pytest
from torch import nn

from moetool.anatomy.structure.model_modules import KnownModules, ModelModules


def make_model() -> nn.Sequential:
    shared = nn.Linear(2, 2)
    return nn.Sequential(nn.ReLU(), nn.Sequential(shared, nn.Dropout()), shared)


def name_anew(model: nn.Sequential) -> None:
    model[1]._modules["last"] = model[1]._modules.pop("1")


def put_first_last(model: nn.Sequential) -> None:
    model._modules["0"] = model._modules.pop("0")


CHANGES: tuple[Callable[[nn.Sequential], object], ...] = (
    lambda model: model.append(nn.ReLU()),
    lambda model: model[0].add_module("inner", nn.ReLU()),
    lambda model: setattr(model[1], "1", nn.Dropout()),
    lambda model: model.pop(2),
    name_anew,
    put_first_last,
)


def test_modules_are_those_of_torch_by_their_first_paths() -> None:
    model = make_model()
    found = ModelModules(model)
    assert list(found.by_path.items()) == list(model.named_modules())
    assert found.path_by_id == {id(module): path for path, module in model.named_modules()}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_walked_again_after_its_modules_have_changed(
    change: Callable[[nn.Sequential], object],
) -> None:
    model, known = make_model(), KnownModules()
    first = known.of(model)
    assert known.of(model) is first
    change(model)
    assert not first.are_current
    assert list(known.of(model).by_path.items()) == list(model.named_modules())


def test_another_model_is_walked() -> None:
    known = KnownModules()
    known.of(make_model())
    model = make_model()
    assert known.of(model).model is model


def test_tensors_are_those_that_the_modules_hold_at_the_time() -> None:
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(nn.Linear(2, 2), norm)
    known = ModelModules(model)
    norm.weight = nn.Parameter(norm.weight.detach().double())
    norm.register_buffer("scale", None)
    expected = [
        tensor
        for module in model
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    assert list(map(id, known.list_tensors())) == list(map(id, expected))
    assert known.are_current
