"""The referees accept what a model did and nothing else, in several layouts of its experts."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.families.tiny.dense_reference import ObservedExperts, apply_decisions, observe_experts
from tests.families.tiny.gemm_audit import GemmAudit

TOLERANCE = 1e-5
NUM_EXPERTS, TOP_K = 8, 3
NUM_ROWS, NUM_COLUMNS, HIDDEN_SIZE = 2, 7, 64

COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "initializer_range": 0.12,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": COMMON,
    "gpt_oss": COMMON,
    "llama4_text": {**COMMON, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
    "dbrx": {
        "vocab_size": 256,
        "d_model": HIDDEN_SIZE,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "initializer_range": 0.12,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": HIDDEN_SIZE,
            "ffn_hidden_size": 40,
            "moe_num_experts": NUM_EXPERTS,
            "moe_top_k": TOP_K,
        },
    },
}
LAYOUTS = [*CONFIGS, "classical"]

# Ids and weights. # (num_tokens, top_k)
Decision = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    experts_path: str


class ClassicalBlock(nn.Module):
    """As most remote code writes it: a list of experts, each called on its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN_SIZE, NUM_EXPERTS)
        self.experts = nn.ModuleList(feed_forward() for _ in range(NUM_EXPERTS))
        self.shared_experts = feed_forward()
        self.decision: Decision | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.flatten(0, -2)
        weights, ids = cast(torch.Tensor, self.router(rows)).softmax(dim=-1).topk(TOP_K)
        self.decision = ids, weights
        output = torch.zeros_like(rows)
        for expert, module in enumerate(self.experts):
            tokens, slots = torch.where(ids == expert)
            output.index_add_(0, tokens, module(rows[tokens]) * weights[tokens, slots, None])
        output += self.shared_experts(rows)
        return output.view_as(hidden_states)


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(HIDDEN_SIZE, 40), nn.SiLU(), nn.Linear(40, HIDDEN_SIZE))


class ClassicalModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, HIDDEN_SIZE)
        self.mlp = ClassicalBlock()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.mlp(self.embedding(input_ids)))


def build(layout: str) -> nn.Module:
    torch.manual_seed(0)
    if layout == "classical":
        return ClassicalModel().eval()
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[layout](**CONFIGS[layout]))
    return cast(nn.Module, model.float().eval())


def run(model: nn.Module) -> None:
    # Every token once: a model without positions would make equal rows of equal tokens.
    tokens = torch.arange(3, 3 + NUM_ROWS * NUM_COLUMNS).view(NUM_ROWS, NUM_COLUMNS)
    with torch.inference_mode():
        model(input_ids=tokens)


def find_layers(model: nn.Module) -> list[Layer]:
    paths = [path for path, _ in model.named_modules()]
    return [Layer(path) for path in paths if path.rpartition(".")[2] == "experts"]


@contextmanager
def catch_decisions(model: nn.Module, layers: list[Layer]) -> Iterator[dict[Layer, Decision]]:
    """Catch each layer's decision where this test knows that its family shows it."""
    caught: dict[Layer, Decision] = {}

    def received(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            caught[layer] = args[1].clone(), args[2].clone()

        return hook

    def scored(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: tuple[torch.Tensor, ...]) -> None:
            weights, ids = output[0].topk(TOP_K)
            caught[layer] = ids, weights

        return hook

    def kept(layer: Layer) -> Callable[..., None]:
        def hook(block: ClassicalBlock, _args: object, _output: object) -> None:
            assert block.decision is not None
            caught[layer] = block.decision

        return hook

    handles = []
    for layer in layers:
        experts = model.get_submodule(layer.experts_path)
        block = model.get_submodule(layer.experts_path.rpartition(".")[0])
        if isinstance(block, ClassicalBlock):
            handles.append(block.register_forward_hook(kept(layer)))
        elif type(experts).__name__ == "Llama4TextExperts":
            router = block.get_submodule("router")
            handles.append(router.register_forward_hook(scored(layer)))
        else:
            handles.append(experts.register_forward_pre_hook(received(layer)))
    yield caught
    for handle in handles:
        handle.remove()


@dataclass(frozen=True)
class Verdict:
    """Observations of one layer by the referees, and the decisions that its experts received."""

    observed: ObservedExperts
    pairs: Counter[tuple[int, int]]
    ids: torch.Tensor
    weights: torch.Tensor


def judge(model: nn.Module) -> list[Verdict]:
    layers = find_layers(model)
    with (
        catch_decisions(model, layers) as caught,
        observe_experts(model, layers) as observed,
        GemmAudit(model, layers) as audit,
    ):
        run(model)
    return [
        Verdict(observed[layer.experts_path], audit.pairs(layer), *caught[layer])
        for layer in layers
    ]


def list_pairs(ids: torch.Tensor) -> Counter[tuple[int, int]]:
    return Counter((token, expert) for token, row in enumerate(ids.tolist()) for expert in row)


@pytest.fixture(scope="module", params=LAYOUTS)
def verdicts(request: pytest.FixtureRequest) -> list[Verdict]:
    return judge(build(request.param))


def test_both_referees_accept_what_the_model_did(verdicts: list[Verdict]) -> None:
    assert verdicts
    for verdict in verdicts:
        assert verdict.observed.relative_error(verdict.ids, verdict.weights) <= TOLERANCE
        assert verdict.pairs == list_pairs(verdict.ids)
        assert verdict.pairs.total() == NUM_ROWS * NUM_COLUMNS * TOP_K


def test_both_referees_catch_one_wrong_id(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        wrong = verdict.ids.clone()
        wrong[3, 0] = min(set(range(NUM_EXPERTS)) - set(wrong[3].tolist()))
        assert verdict.observed.relative_error(wrong, verdict.weights) > 100 * TOLERANCE
        assert verdict.pairs != list_pairs(wrong)


def test_both_referees_catch_the_experts_of_two_tokens_exchanged(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        chosen = [set(row) for row in verdict.ids.tolist()]
        other = next(row for row, experts in enumerate(chosen) if experts != chosen[0])
        wrong = verdict.ids.clone()
        wrong[[0, other]] = wrong[[other, 0]]
        assert verdict.observed.relative_error(wrong, verdict.weights) > 100 * TOLERANCE
        assert verdict.pairs != list_pairs(wrong)


def test_the_dense_reference_catches_a_weight_off_by_one_per_cent(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        wrong = verdict.weights.clone()
        wrong[3, wrong[3].argmax()] *= 1.01
        assert verdict.observed.relative_error(verdict.ids, wrong) > 10 * TOLERANCE


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("layout", ["mixtral", "gpt_oss"])
def test_every_experts_implementation_is_judged(layout: str, implementation: str) -> None:
    model: Any = build(layout)
    model.set_experts_implementation(implementation)
    for verdict in judge(model):
        assert verdict.observed.relative_error(verdict.ids, verdict.weights) <= TOLERANCE
        assert verdict.pairs == list_pairs(verdict.ids)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_that_do_other_than_they_are_told_are_caught(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build("mixtral")
    model.set_experts_implementation(implementation)
    for layer in find_layers(model):
        experts = model.get_submodule(layer.experts_path)
        monkeypatch.setattr(experts, "forward", shift_ids(experts.forward))
    for verdict in judge(model):
        assert verdict.observed.relative_error(verdict.ids, verdict.weights) > 100 * TOLERANCE
        assert verdict.pairs == list_pairs((verdict.ids + 1) % NUM_EXPERTS)


def shift_ids(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def shifted(rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return forward(rows, (ids + 1) % NUM_EXPERTS, weights)

    return shifted


def test_id_minus_one_contributes_nothing() -> None:
    experts = build("classical").get_submodule("mlp.experts")
    rows, weights = torch.randn(2, HIDDEN_SIZE), torch.full((2, 2), 0.5)
    output = apply_decisions(experts, rows, torch.tensor([[-1, -1], [2, -1]]), weights)
    (expected,) = copy.deepcopy(experts.get_submodule("2")).double()(rows[1:].double())
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    torch.testing.assert_close(output[1], expected / 2)


def test_the_audit_refuses_uses_of_the_weights_that_it_does_not_follow() -> None:
    model = build("classical")
    block = cast(ClassicalBlock, model.get_submodule("mlp"))
    first = cast(nn.Linear, block.experts[0].get_submodule("0"))

    def use(*_: object) -> None:
        first.weight.sum()

    block.router.register_forward_pre_hook(use)
    with (
        pytest.raises(AssertionError, match="not followed"),
        GemmAudit(model, find_layers(model)),
    ):
        run(model)


def test_the_audit_refuses_tokens_that_it_can_not_tell_apart() -> None:
    model = build("classical")
    equal = torch.full((1, 2), 3)
    with (
        pytest.raises(AssertionError, match="two equal rows"),
        GemmAudit(model, find_layers(model)),
    ):
        model(equal)


def test_the_referees_leave_the_model_as_it_was(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        for module in verdict.observed.experts.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert all(p.dtype == torch.float32 for p in verdict.observed.experts.parameters())
