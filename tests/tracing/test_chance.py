"""Routed layers that draw random numbers while they train are refused, and others recorded."""

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
from tests.families.models import build_family, text_inputs
from tests.tiny_models import build_model

TOKENS = torch.arange(3, 17).view(2, 7)
BLOCK = "model.layers.1.mlp"


def record(model: nn.Module, **options: Any) -> pd.DataFrame:
    with RoutingRecorder(model, **options) as recorder, torch.no_grad():
        model(input_ids=TOKENS)
    return recorder.to_frame()


def add_after(module: nn.Module, noise: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let a module change what it returns, if that is one tensor."""
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


NOISES = [drop_experts_output, drop_activations, jitter_hidden_states, shake_scores]


@pytest.mark.parametrize("make_noisy", NOISES)
def test_noise_in_a_routed_layer_in_training_mode_is_refused(
    make_noisy: Callable[[nn.Module], None],
) -> None:
    model = build_model("mixtral").train()
    make_noisy(model.get_submodule(BLOCK))

    with pytest.raises(UntraceableError, match=f"{BLOCK} draws random numbers") as raised:
        record(model)

    assert "model.eval()" in str(raised.value.hint)
    assert not any(module._forward_hooks for module in model.modules())
    # The other routed layers, one without noise among them, can be recorded.
    assert set(record(model, layers=[0, 2])["layer"]) == {0, 2}
    # Whoever wants to see the routing of a training run may.
    assert set(record(model, allow_inexact=True)["layer"]) == {0, 1, 2}


def test_a_training_model_without_noise_in_its_routing_is_recorded() -> None:
    plain = record(build_model("mixtral"))
    pd.testing.assert_frame_equal(record(build_model("mixtral").train()), plain)

    with_dropout = build_model("mixtral", attention_dropout=0.5).train()
    assert len(record(with_dropout)) == len(plain)


def test_the_mode_counts_that_a_call_runs_in() -> None:
    model = build_model("mixtral")
    jitter_hidden_states(model.get_submodule(BLOCK))
    with RoutingRecorder(model) as recorder, torch.no_grad():
        model(input_ids=TOKENS)
        assert len(recorder.take_calls()) == 1
        model.train()
        with pytest.raises(UntraceableError, match="draws random numbers"):
            model(input_ids=TOKENS)
        model.eval()
        model(input_ids=TOKENS)
    assert len(recorder.calls) == 1


def test_experts_that_are_modules_of_their_own_are_refused_with_dropout() -> None:
    model: PreTrainedModel = build_family("switch_transformers").train()
    with (
        RoutingRecorder(model),
        torch.no_grad(),
        pytest.raises(UntraceableError, match="draws random numbers in training mode"),
    ):
        model(**text_inputs(model))


def test_a_decoder_layer_that_routes_itself_is_watched_without_its_attention() -> None:
    """Gemma 4's router and experts are children of the decoder layer, next to its attention."""
    model = build_family("gemma4_text").train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    assert len(record(model))

    add_after(model.get_submodule("model.layers.0.experts"), nn.Dropout(0.5).train())
    with pytest.raises(UntraceableError, match=r"model\.layers\.0\.experts draws random numbers"):
        record(model)
