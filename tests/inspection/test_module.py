"""A model of transformers in memory is inspected; what is not a module is refused by its type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moetool import inspect_model
from moetool.errors import UsageError
from tests.tiny_models import DENSE_FAMILY, FAMILIES, build_model


@pytest.mark.parametrize("family", [DENSE_FAMILY, *FAMILIES])
def test_a_model_in_memory_is_inspected_as_its_configuration_is(
    family: str, tmp_path: Path
) -> None:
    model = build_model(family)
    # As the model itself does when it is saved.
    model.config.dtype = model.dtype
    model.config.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    here = inspect_model(model)
    there = inspect_model(tmp_path / "config.json")

    assert (here.parameters, here.rows, here.anatomy) == (
        there.parameters,
        there.rows,
        there.anatomy,
    )
    assert here.flops == there.flops
    assert (here.num_experts, here.top_k) == (there.num_experts, there.top_k)
    assert here.notes[0] == "Counted by the modules in memory; no file was read."
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(parameter.is_meta for parameter in model.parameters())


class Mixture(nn.Module):
    """A module that an adapter library may put in place of an MLP."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.choose = nn.Linear(width, 4)
        self.updates = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = self.choose(x).argmax(-1, keepdim=True)
        every = torch.stack([update(x) for update in self.updates], -1)
        update = every.gather(-1, best[..., None].expand(*x.shape, 1))[..., 0]
        return self.mlp(x) + update  # type: ignore[no-any-return]


def test_what_was_added_to_a_dense_model_leaves_active_parameters_unknown() -> None:
    model: Any = build_model(DENSE_FAMILY)
    plain = inspect_model(model).parameters
    layer = model.model.layers[0]
    width = model.config.hidden_size
    layer.mlp = Mixture(layer.mlp, width)

    inspected = inspect_model(model)

    assert plain is not None
    assert plain.total is not None
    assert inspected.parameters is not None
    assert inspected.parameters.total == plain.total + 4 * (width + 1) * (width + 1)
    assert set(inspected.parameters.active.values()) == {None}
    assert inspected.parameters.expert_share is None
    assert (inspected.num_moe_layers, inspected.num_experts, inspected.top_k) == (None, None, None)
    said = " ".join(inspected.notes)
    assert "no routed experts were recognised" in said
    assert "model.layers.0.mlp" in said
    assert "Dense model" not in said


@pytest.mark.parametrize("model", [None, 3, ["mixtral-8x7b"], {"model_type": "llama"}, b"demo"])
def test_what_names_no_model_is_refused_by_its_type(model: Any) -> None:
    with pytest.raises(UsageError, match=f"something of type {type(model).__name__}"):
        inspect_model(model)


def test_quantized_weights_in_memory_are_refused() -> None:
    model: Any = build_model(DENSE_FAMILY)
    model.quantization_method = "bitsandbytes"

    with pytest.raises(UsageError, match="its weights are quantized in memory"):
        inspect_model(model)


def test_what_a_model_in_memory_does_not_have_is_refused() -> None:
    model = build_model(DENSE_FAMILY)

    with pytest.raises(UsageError, match="no files"):
        inspect_model(model, source="headers")
    with pytest.raises(UsageError, match="no revision 'main'"):
        inspect_model(model, revision="main")


def test_an_unknown_source_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="source can't be 'disk'") as caught:
        inspect_model("demo", source="disk")

    assert "auto, headers or skeleton" in caught.value.hint


def test_a_path_names_a_model(demo: Path) -> None:
    assert inspect_model(demo, source="headers").parameters is not None
