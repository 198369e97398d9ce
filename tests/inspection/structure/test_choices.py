"""Numbers and recordings have to fit the module, and its page is that of any other model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moetool import RoutingRecorder, inspect_model
from moetool.errors import UsageError
from moetool.report.inspect.data import render_csv, render_json, render_table_text
from tests.inspection.structure.test_own_layers import active_of, record, said, total_of
from tests.tracing.own_layers.modules.layers import Layer, NumberedExperts
from tests.tracing.own_layers.modules.models import Gpt
from tests.tracing.own_layers.recording import make


@pytest.fixture(scope="module")
def model() -> Any:
    return make(lambda: Gpt(Layer(), Layer()))


@pytest.mark.parametrize(
    ("top_k", "message"),
    [
        (0, "The top_k of h.0.moe.experts can't be 0"),
        (5, "The top_k of h.0.moe.experts can't be 5"),
        (True, "can't be True"),
        (2.0, "can't be 2.0"),
        ({"h.1.moe": 9}, "The top_k of h.1.moe.experts can't be 9"),
        ({"h.7.moe": 1}, "No routed layer of this Gpt is at 'h.7.moe'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(model: Any, top_k: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        inspect_model(model, top_k=top_k)
    if "No routed" in message:
        assert "'h.0.moe.experts' or 'h.1.moe.experts'" in caught.value.hint


def test_a_number_for_a_dense_module_has_no_effect() -> None:
    with pytest.raises(UsageError, match="top_k has no effect"):
        inspect_model(nn.Linear(3, 3), top_k=1)


def test_recordings_that_do_not_fit_are_refused(model: Any) -> None:
    given = torch.arange(4).view(1, 4)
    frame = record(model, given).to_frame()
    with pytest.raises(UsageError, match="can't be given together"):
        inspect_model(model, top_k=2, recording=frame)
    with pytest.raises(
        UsageError, match=r"not of this Layer.*'h\.0\.moe\.experts', there are none"
    ):
        inspect_model(make(Layer), recording=frame)
    others = record(make(lambda: Gpt(NumberedExperts())), given).to_frame()
    with pytest.raises(UsageError, match="is not of this Gpt"):
        inspect_model(model, recording=others)
    with pytest.raises(UsageError, match="holds no decisions"):
        inspect_model(model, recording=frame[:0])
    with pytest.raises(UsageError, match="can't be of type dict"):
        inspect_model(model, recording={})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no column 'run'"):
        inspect_model(model, recording=frame.drop(columns="run"))
    wrong = frame.assign(expert=frame["expert"] + 4)
    with pytest.raises(UsageError, match=r"'h\.0\.moe\.experts', there are only 4"):
        inspect_model(model, recording=wrong)


def test_layers_that_were_not_recorded_are_unknown(model: Any) -> None:
    with torch.no_grad(), RoutingRecorder(model, layers=[1]) as recorder:
        model(torch.arange(4).view(1, 4))
    inspected = inspect_model(model, recording=recorder)
    assert active_of(inspected) is None
    assert inspected.top_k == (None, 2)
    assert "in 'h.0.moe.experts'" in said(inspected)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"recording": {}}])
def test_models_by_name_take_neither(options: Any) -> None:
    with pytest.raises(UsageError, match="are for modules in memory"):
        inspect_model("mixtral-8x7b", **options)


def test_parameters_without_a_shape_and_packed_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="no shape yet"):
        inspect_model(nn.LazyLinear(3))
    layer = make(Layer)
    layer.packed = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UsageError, match="quantized in memory"):
        inspect_model(layer)


def test_a_module_without_experts_is_dense() -> None:
    inspected = inspect_model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert total_of(inspected) == 3 * 4 + 4 + 4 * 2 + 2
    active = active_of(inspected)
    assert active is not None
    assert active.exact == total_of(inspected)
    assert (inspected.num_moe_layers, inspected.num_experts, inspected.top_k) == (0, 0, 0)
    assert "Dense: nothing" in said(inspected)


class States(Layer):
    """States its own number."""

    top_k = 2


def test_a_number_that_the_code_states_is_a_hint_and_not_taken() -> None:
    inspected = inspect_model(make(States))
    assert active_of(inspected) is None
    assert "the code states 2" in said(inspected)


def test_a_module_has_the_page_of_a_model(model: Any) -> None:
    inspected = inspect_model(model, top_k=2)
    assert repr(inspected) == (
        "<Inspection Gpt: 6.304K parameters, 4.256K active, top-2 of 4 experts>"
    )
    page = render_table_text([inspected])
    for words in ("its modules in memory", "top-2 of 4", "as loaded   24.6 KiB in float32"):
        assert words in page
    both = render_table_text([inspected, inspect_model("mixtral-8x7b")])
    assert "modules" in both
    assert '"source": "modules"' in render_json([inspected])
    assert render_csv([inspected]).count("routed_experts") == 2
    assert len(inspected.to_frame()) == len(inspected.rows)


def test_the_module_is_left_as_it_is(model: Any) -> None:
    before = {name: (tensor.clone(), tensor) for name, tensor in model.state_dict().items()}
    inspect_model(model, recording=record(model, torch.arange(4).view(1, 4)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name][0], tensor)
        assert before[name][1].data_ptr() == tensor.data_ptr()
