"""Experts that draw random numbers in training are refused; noise before them is recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from tests.families.tiny.models import build_family, text_inputs
from tests.families.tiny.proof import prove
from tests.tiny_models import build_model
from tests.tracing.own_layers.modules.layers import Layer
from tests.tracing.own_layers.modules.models import Gpt

TOKENS = torch.arange(3, 17).view(2, 7)
BLOCK = "model.layers.1.mlp"


def record(model: nn.Module, **options: Any) -> pd.DataFrame:
    with RoutingRecorder(model, **options) as recorder, torch.no_grad():
        model(input_ids=TOKENS)
    return recorder.to_frame()


def add_after(module: nn.Module, noise: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let a module change its output, if that is one tensor."""
    forward = module.forward

    @wraps(forward)  # The finder reads the signature.
    def noisy(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return noise(output) if isinstance(output, torch.Tensor) else output

    module.forward = noisy


def drop_experts_output(block: nn.Module) -> None:
    add_after(block.get_submodule("experts"), nn.Dropout(0.5).train())


def drop_activations(block: nn.Module) -> None:
    add_after(block.get_submodule("experts.act_fn"), nn.Dropout(0.5).train())


def jitter_hidden_states(block: nn.Module) -> None:
    block.jitter_noise = 0.01  # type: ignore[assignment]


def shake_scores(block: nn.Module) -> None:
    router: Any = block.get_submodule("gate")
    forward = router.forward
    router.forward = lambda hidden: forward(hidden + 0.1 * torch.rand_like(hidden))


@pytest.mark.parametrize("make_noisy", [drop_experts_output, drop_activations])
def test_noise_in_experts_in_training_mode_is_refused(
    make_noisy: Callable[[nn.Module], None],
) -> None:
    model = build_model("mixtral").train()
    make_noisy(model.get_submodule(BLOCK))

    with pytest.raises(UntraceableError, match=f"{BLOCK}.experts draws random numbers") as raised:
        record(model)

    assert "model.eval()" in str(raised.value.hint)
    assert not any(module._forward_hooks for module in model.modules())
    # Other layers and other outputs of a training run.
    assert set(record(model, layers=[0, 2])["layer"]) == {0, 2}
    assert set(record(model, allow_inexact=True)["layer"]) == {0, 1, 2}


@pytest.mark.parametrize("make_noisy", [jitter_hidden_states, shake_scores])
def test_noise_before_the_decision_is_part_of_it(make_noisy: Callable[[nn.Module], None]) -> None:
    """The experts carry out the recorded decision, which differs from that without noise."""
    model = build_model("mixtral").train()
    calm = record(model)
    make_noisy(model.get_submodule(BLOCK))
    torch.manual_seed(3)

    proof = prove(model)

    for layer in proof.layers:
        assert layer.relative_error(layer.ids, layer.weights) <= 1e-5
        assert layer.pairs == layer.expected_pairs(layer.ids)
    noisy = record(model)
    assert noisy.query("layer == 0").equals(calm.query("layer == 0"))
    assert not noisy.query("layer == 1").equals(calm.query("layer == 1"))


def test_a_training_model_without_noise_in_its_routing_is_recorded() -> None:
    plain = record(build_model("mixtral"))
    pd.testing.assert_frame_equal(record(build_model("mixtral").train()), plain)

    with_dropout = build_model("mixtral", attention_dropout=0.5).train()
    assert len(record(with_dropout)) == len(plain)


def test_the_mode_counts_that_a_call_runs_in() -> None:
    model = build_model("mixtral")
    drop = nn.Dropout(0.5)
    model.get_submodule(BLOCK).get_submodule("experts").add_module("dropout", drop)
    add_after(model.get_submodule(BLOCK).get_submodule("experts"), drop)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(input_ids=TOKENS)
        assert len(recorder.take_calls()) == 1
        model.train()
        with pytest.raises(UntraceableError, match="draws random numbers"):
            model(input_ids=TOKENS)
        model.eval()
        model(input_ids=TOKENS)
    assert len(recorder.calls) == 1


def test_experts_that_are_modules_of_their_own_are_proven_without_what_they_return() -> None:
    model: PreTrainedModel = build_family("switch_transformers").train()
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(**text_inputs(model))
    assert len(recorder.to_frame())


def test_experts_that_run_again_for_their_saliency_may_draw_nothing() -> None:
    model = Gpt(Layer()).train()
    layer: Any = model.h[0]
    for expert in layer.moe.experts:
        expert.append(nn.Dropout(0.5))
    with (
        RoutingRecorder(model, keep_saliency=True),
        torch.no_grad(),
        pytest.raises(UntraceableError, match="draws random numbers in training mode"),
    ):
        model(TOKENS)


def test_a_decoder_layer_that_routes_itself_may_drop_attention_but_not_experts() -> None:
    """Gemma 4's router and experts are children of the decoder layer, next to its attention."""
    model = build_family("gemma4_text").train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    assert len(record(model))

    add_after(model.get_submodule("model.layers.0.experts"), nn.Dropout(0.5).train())
    with pytest.raises(UntraceableError, match=r"model\.layers\.0\.experts draws random numbers"):
        record(model)
