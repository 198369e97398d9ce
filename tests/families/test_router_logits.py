"""Scores that a model returns with `output_router_logits` are those that the recorder saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from moetool import RoutingRecorder
from moetool.tracing.recording.calls import RecordedLayer
from tests.families.tiny.models import LOOPED_FAMILIES, available, build_family, text_inputs

# Families in which the two can't be compared one by one, and why; a test below checks each.
EXCEPTIONS = {
    "dbrx": "its block chooses, so no module shows the recorder which scores decided",
    "deepseek_v4": "it leaves out the layers that choose by a hash of the token",
    "doge": "it returns scores of keys, of which pairs make an expert",
    "jetmoe": "it returns those of attention routers first, and twice before transformers 5.24",
    "nllb-moe": "it returns a list for each stack",
    "switch_transformers": "it returns a list for each stack, by row and column",
}
NOT_OFFERED = {"diffusion_gemma", "nemotron_h_omni", "openai_privacy_filter"}

VERSION = [int(part) for part in transformers.__version__.split(".")[:2]]
# Before, fewer families offered them; blocks chose (Jamba) or experts did (Aria).
IS_RECENT = VERSION >= [5, 23]
if VERSION < [5, 24]:
    NOT_OFFERED.add("kimi_k25")
ONLY_RECENT = {"aria", "aria_text", "dbrx", "jamba", "switch_transformers"}
FAMILIES = [
    name
    for name in available()
    if (IS_RECENT or name not in ONLY_RECENT) and name not in LOOPED_FAMILIES
]


@dataclass(frozen=True)
class Compared:
    """One forward call: its output, and what was recorded, layer by layer."""

    output: Any
    layers: list[RecordedLayer]

    @property
    def scores(self) -> list[torch.Tensor]:
        """The recorded scores, layer by layer. # (num_tokens, num_scores) each"""
        found = [layer.scores for layer in self.layers]
        return [torch.from_numpy(scores) for scores in found if scores is not None]


@cache
def compare(name: str) -> Compared:
    model = build_family(name)
    recorder = RoutingRecorder(model, keep_scores=True, allow_inexact=True)
    with recorder, torch.inference_mode(), torch.random.fork_rng(devices=[]):
        output = model(**text_inputs(model), output_router_logits=True)
    return Compared(output, [layer for call in recorder.calls for layer in call.layers])


def returned(compared: Compared, name: str = "router_logits") -> list[torch.Tensor]:
    """Return what the model gave. # (num_tokens, num_scores) each"""
    logits = compared.output[name]
    return [scores.float().reshape(-1, scores.shape[-1]) for scores in logits]


def are_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if name not in NOT_OFFERED and name not in EXCEPTIONS]
)
def test_the_models_router_logits_are_the_recorded_scores(name: str) -> None:
    compared = compare(name)
    assert compared.layers
    if "router_logits" in compared.output or IS_RECENT:
        assert are_equal(returned(compared), compared.scores)


@pytest.mark.parametrize("name", sorted(NOT_OFFERED & set(FAMILIES)))
def test_some_families_offer_none(name: str) -> None:
    compared = compare(name)
    assert len(compared.scores) == len(compared.layers) > 0
    assert not any("router" in key for key in compared.output)


def check_dbrx() -> None:
    model = build_family("dbrx")
    seen = []

    def keep(_router: nn.Module, _args: object, scores: torch.Tensor) -> None:
        seen.append(scores)

    for path, module in model.named_modules():
        if path.endswith(".router"):
            module.register_forward_hook(keep)
    with RoutingRecorder(model, keep_scores=True) as recorder, torch.inference_mode():
        output = model(**text_inputs(model), output_router_logits=True)
    compared = Compared(output, list(recorder.calls[0].layers))
    assert are_equal(returned(compared), seen)
    assert compared.scores == []


def check_deepseek_v4() -> None:
    compared = compare("deepseek_v4")
    assert len(compared.scores) == 4
    assert are_equal(returned(compared), compared.scores[1:])


def check_doge() -> None:
    compared = compare("doge")
    num_experts = compared.layers[0].layer.num_experts
    for scores in compared.output.router_logits:
        assert scores.shape == (2, 14, num_experts**0.5)
    assert compared.scores == []


def check_jetmoe() -> None:
    compared = compare("jetmoe")
    stacks = [layer.layer.stack for layer in compared.layers]
    assert stacks == ["decoder", "decoder.attention"] * 4
    given = returned(compared)
    times = 2 if VERSION < [5, 24] else 1
    assert len(given) == 4 + 4 * times
    for stack, scores in zip(stacks, compared.scores, strict=True):
        num_matches = sum(torch.equal(scores, other) for other in given)
        assert num_matches == (times if stack == "decoder.attention" else 1)
    assert not torch.equal(given[0], compared.scores[0])


def check_stacks(name: str) -> None:
    compared = compare(name)
    assert "router_logits" not in compared.output
    by_stack = [returned(compared, f"{stack}_router_logits") for stack in ("encoder", "decoder")]
    assert [layer.layer.stack for layer in compared.layers] == ["encoder", "decoder"]
    assert are_equal([scores for stack in by_stack for scores in stack], compared.scores)


CHECKS: dict[str, Callable[[], None]] = {
    "dbrx": check_dbrx,
    "deepseek_v4": check_deepseek_v4,
    "doge": check_doge,
    "jetmoe": check_jetmoe,
    "nllb-moe": lambda: check_stacks("nllb-moe"),
    "switch_transformers": lambda: check_stacks("switch_transformers"),
}


@pytest.mark.parametrize("name", [name for name in EXCEPTIONS if name in FAMILIES])
def test_each_exception_still_is_one(name: str) -> None:
    CHECKS[name]()
