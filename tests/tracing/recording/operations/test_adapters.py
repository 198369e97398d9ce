"""Adapters on experts are looked through: the decisions are those of the merged model."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from moetool import RoutingRecorder
from tests.tiny_models import build_model
from tests.tracing.oracle import find_difference, fit_weights
from tests.tracing.recording.operations.blocks import Gathered, call
from tests.tracing.recording.operations.test_operations import Model, tokens
from tests.tracing.recording.separate.exact_blocks import NUM_EXPERTS, Block
from tests.tracing.recording.separate.models import Model as ListModel

RANK = 2
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def adapt(model: Any, **targets: Any) -> Any:
    torch.manual_seed(4)
    config = peft.LoraConfig(r=RANK, init_lora_weights=False, **targets)
    return peft.get_peft_model(model, config).eval()


def record(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the ids and weights of each layer."""
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(input_ids=tokens())
    return [
        (torch.from_numpy(layer.experts), torch.from_numpy(layer.weights))
        for layer in recorder.calls[0].layers
    ]


@pytest.mark.parametrize(
    "names", [["experts.gate_up_proj", "experts.down_proj"], ["experts.down_proj"]]
)
def test_adapted_parameters_of_experts_change_nothing_about_what_they_receive(
    names: list[str],
) -> None:
    model: Any = build_model("mixtral").eval()
    plain = record(model)
    adapted = adapt(model, target_modules=[], target_parameters=names)
    with RoutingRecorder(adapted) as recorder, torch.no_grad():
        adapted(input_ids=tokens())
    found = record(adapted)
    router = recorder.find_router(recorder.layers[0])
    assert router is not None
    assert router.endswith("mlp.gate")
    assert recorder.find_output_factor(recorder.layers[0]) == 1
    merged = record(copy.deepcopy(adapted).merge_and_unload())
    assert torch.equal(found[0][0], plain[0][0])
    for (ids, weights), (expected, expected_weights) in zip(found, merged, strict=True):
        assert torch.equal(ids, expected)
        torch.testing.assert_close(weights, expected_weights)
    # The adapters matter: behind them another decision is made.
    assert not torch.equal(found[-1][1], plain[-1][1])


def test_adapted_layers_of_separate_experts_have_the_merged_models_decision() -> None:
    torch.manual_seed(1)
    adapted = adapt(ListModel(Block()), target_modules=r"mlp\.(experts\.\d+\.0|gate)")
    ((ids, weights),) = record(adapted)
    ((expected, expected_weights),) = record(copy.deepcopy(adapted).merge_and_unload())
    assert torch.equal(ids, expected)
    torch.testing.assert_close(weights, expected_weights)


def test_adapted_parameters_of_a_block_have_the_weights_that_the_oracle_finds() -> None:
    torch.manual_seed(1)
    model = Model(Gathered()).double()
    adapted = adapt(model, target_modules=[], target_parameters=["moe.w1", "moe.w2"]).double()
    ((ids, weights),) = record(adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    with torch.no_grad():
        hidden = call(merged.embedding, tokens()).flatten(0, 1)
        by_expert = torch.stack([merged.moe.run_expert(e, hidden) for e in range(NUM_EXPERTS)])
        fit = fit_weights(merged.moe(hidden), by_expert)
    assert find_difference(fit, ids, weights) < 1e-6
