"""Losses of a recorded trace are those of the logits that the model's routers computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moetool import measure_balance, trace_model
from moetool.analysis.balance.result import Balance
from moetool.catalogue.names import demo_folder
from tests.tiny_models import build_model

TEXT = "the quick brown fox jumps over the lazy dog, and then it sleeps"


def trace_with_logits(family: str) -> tuple[Balance, list[torch.Tensor]]:
    """Return the balance of a tiny model's trace, and each layer's logits, as hooks see them."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    model = build_model(family, vocab_size=len(tokenizer))
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if type(module).__name__.lower().endswith("router"):
            module.register_forward_hook(
                lambda _, __, output, name=name: seen.update(
                    {name: output[0] if isinstance(output, tuple) else output}
                )
            )
    trace = trace_model((model, tokenizer), [TEXT], probabilities=True)
    logits = [each.detach().float().reshape(-1, each.shape[-1]) for each in seen.values()]
    return measure_balance(trace), logits


def loss_of(balance: Balance, name: str) -> float | None:
    (loss,) = (loss for loss in balance.losses if loss.name == name)
    return loss.value


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_pooled_loss_is_that_of_the_model(family: str) -> None:
    balance, logits = trace_with_logits(family)
    assert len(logits) == len(balance.layers) == 3
    gates: Any = tuple(logits)
    layer = balance.layers[0]
    theirs = float(load_balancing_loss_func(gates, layer.num_experts, layer.top_k))
    assert loss_of(balance, "huggingface") == pytest.approx(theirs, rel=2**-10)
    assert loss_of(balance, "z_loss") is None


def test_the_z_loss_of_a_sigmoid_router_is_that_of_its_logits() -> None:
    balance, logits = trace_with_logits("deepseek_v3")
    assert len(logits) == len(balance.layers) == 2
    squares = [float((torch.logsumexp(each, dim=1) ** 2).mean()) for each in logits]
    for layer, square in zip(balance.layers, squares, strict=True):
        assert layer.z_loss == pytest.approx(square, rel=0.01)
    assert loss_of(balance, "z_loss") == pytest.approx(sum(squares) / 2, rel=0.01)
