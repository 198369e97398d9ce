"""Blocks whose experts are separate modules: traced exactly or refused, never wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import accelerate
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool import RoutingRecorder
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.separate.stand_ins import StandIn
from tests.families.tiny.dense_reference import apply_decisions
from tests.families.tiny.gemm_audit import GemmAudit

HIDDEN_SIZE, NUM_EXPERTS, TOP_K = 16, 6, 2
VOCAB_SIZE = 64
TOLERANCE = 1e-5

# Ids and weights. # (num_tokens, top_k)
Decision = tuple[torch.Tensor, torch.Tensor]


def feed_forward(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(HIDDEN_SIZE, 24), nn.SiLU(), nn.Dropout(dropout), nn.Linear(24, HIDDEN_SIZE)
    )


def call(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module(*args))


# Blocks as published models have them. Each keeps its decision, for comparison.


class Block(nn.Module):
    """Chooses top-k of softmax scores and adds up expert by expert; other blocks vary a part."""

    def __init__(self, num_experts: int = NUM_EXPERTS, top_k: int = TOP_K) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.gate: nn.Module = nn.Linear(HIDDEN_SIZE, num_experts, bias=False)
        self.experts: Any = nn.ModuleList(feed_forward() for _ in range(num_experts))
        self.decision: Decision | None = None

    def forward(self, hidden_states: torch.Tensor) -> Any:
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        ids, weights = self.route(rows)
        self.decision = ids, weights
        return self.finish(rows, self.run(rows, ids, weights)).view_as(hidden_states)

    def route(self, rows: torch.Tensor) -> Decision:
        scores = self.score(rows).float().softmax(dim=-1)
        weights, ids = scores.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return ids, weights.to(rows.dtype)

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return call(self.gate, rows)

    def run(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(rows)
        for expert in range(self.num_experts):
            tokens, slots = torch.where(ids == expert)
            if len(tokens):
                returned = self.run_expert(expert, rows[tokens], weights[tokens, slots, None])
                output.index_add_(0, tokens, returned)
        return output

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[expert], rows) * weights

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return output


class MixtralOfTransformers4(Block):
    """One-hot mask, `where`, `index_add_`; experts without tokens run too; returns its logits."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = call(self.gate, hidden_states)
        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)
        self.decision = selected_experts, routing_weights
        final = torch.zeros_like(hidden_states)
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx in range(self.num_experts):
            idx, top_x = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            current = call(self.experts[expert_idx], current_state)
            final.index_add_(0, top_x, current * routing_weights[top_x, idx, None])
        return final.reshape(batch_size, sequence_length, hidden_dim), router_logits


class DeepseekGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NUM_EXPERTS, HIDDEN_SIZE))
        self.e_score_correction_bias = nn.Parameter(0.2 * torch.randn(NUM_EXPERTS))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        scores = F.linear(rows, self.weight).sigmoid()
        _, ids = torch.topk(scores + self.e_score_correction_bias, k=TOP_K, sorted=False)
        weights = scores.gather(1, ids)
        return ids, weights / weights.sum(dim=-1, keepdim=True), None


class DeepseekOfRemoteCode(Block):
    """Sorts all assignments by expert, splits them, and scatters the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = DeepseekGate()
        self.shared_experts = feed_forward()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        identity, orig_shape = hidden_states, hidden_states.shape
        topk_idx, topk_weight, _ = self.gate(hidden_states)
        # In place, on the output of the gate: a second run must not multiply it twice.
        topk_weight *= 2.5
        self.decision = topk_idx, topk_weight.clone()
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        y = self.moe_infer(rows, topk_idx, topk_weight).view(*orig_shape)
        return self.finish(identity, y)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output + call(self.shared_experts, rows)

    def moe_infer(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weight: torch.Tensor
    ) -> torch.Tensor:
        counts = topk_ids.new_zeros((topk_ids.shape[0], self.num_experts))
        counts.scatter_(1, topk_ids, 1)
        tokens_per_expert = counts.sum(dim=0).tolist()
        order = topk_ids.view(-1).argsort()
        sorted_tokens = x[order // topk_ids.shape[1]]
        outputs, start = [], 0
        for expert, num_tokens in enumerate(tokens_per_expert):
            if num_tokens:
                rows = sorted_tokens[start : start + num_tokens]
                outputs.append(call(self.experts[expert], rows))
                start += num_tokens
        outs = torch.cat(outputs)
        new_x = torch.empty_like(outs)
        new_x[order] = outs
        shaped = new_x.view(*topk_ids.shape, -1).type(topk_weight.dtype)
        return shaped.mul_(topk_weight.unsqueeze(-1)).sum(dim=1).type(new_x.dtype)


class DenseLoop(Block):
    """Every expert runs on every token; a weight of zero means that it was not chosen."""

    def run(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(len(rows), self.num_experts, dtype=rows.dtype).scatter(1, ids, weights)
        output = torch.zeros_like(rows)
        for expert, module in enumerate(self.experts):
            if self.runs(mask[:, expert]):
                output = output + mask[:, expert, None] * call(module, rows)
        return output

    def runs(self, mask: torch.Tensor) -> bool:
        del mask
        return True


class DenseLoopOverExpertsInUse(DenseLoop):
    def runs(self, mask: torch.Tensor) -> bool:
        return bool((mask != 0).any())


class NamedExperts(Block):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(
            {f"expert_{index}": feed_forward() for index in range(NUM_EXPERTS)}
        )

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[f"expert_{expert}"], rows) * weights


class WithCapacity(Block):
    """An expert takes the first two tokens that chose it."""

    def route(self, rows: torch.Tensor) -> Decision:
        ids, weights = super().route(rows)
        is_chosen = F.one_hot(ids, self.num_experts)  # (num_tokens, top_k, num_experts)
        rank = is_chosen.flatten(0, 1).cumsum(dim=0).view_as(is_chosen) - 1
        is_late = (rank.gather(2, ids.unsqueeze(2)) >= 2).squeeze(2)
        return ids.masked_fill(is_late, -1), weights


class SlotsOfEqualNumber(WithCapacity):
    """GShard: tokens go to slots by a product, and empty slots hold zeros."""

    def run(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(rows)
        for expert, module in enumerate(self.experts):
            tokens, slots = torch.where(ids == expert)
            dispatch = torch.zeros(2, len(rows), dtype=rows.dtype)
            dispatch[torch.arange(len(tokens)), tokens] = 1
            combine = dispatch.clone()
            combine[torch.arange(len(tokens)), tokens] = weights[tokens, slots]
            output = output + combine.T @ call(module, dispatch @ rows)
        return output


class ScaledAndShared(Block):
    """The sum is scaled; a shared expert has its own gate (Qwen2-MoE); more are in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_expert = feed_forward()
        self.shared_expert_gate = nn.Linear(HIDDEN_SIZE, 1)
        self.more_experts_for_all = nn.ModuleList([feed_forward(), feed_forward()])

    def route(self, rows: torch.Tensor) -> Decision:
        ids, weights = super().route(rows)
        return ids, 2.5 * weights

    def run(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run(rows, ids, weights / 2.5) * 2.5

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        output = output + call(self.shared_expert_gate, rows).sigmoid() * call(
            self.shared_expert, rows
        )
        for expert in self.more_experts_for_all:
            output = output + call(expert, rows)
        return output


class RouterOfItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(HIDDEN_SIZE, NUM_EXPERTS)
        self.dropout = nn.Dropout(0.1)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = call(self.layer, self.dropout(rows)).softmax(dim=-1).topk(TOP_K)
        return weights, ids


class WithRouterOfItsOwn(Block):
    """Its weights are not normalized; its experts use dropout in training."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = RouterOfItsOwn()
        self.experts = nn.ModuleList(feed_forward(0.2) for _ in range(NUM_EXPERTS))

    def route(self, rows: torch.Tensor) -> Decision:
        weights, ids = self.gate(rows)
        return ids, weights


class WithUnusedExperts(Block):
    """Two experts are never chosen."""

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return super().score(rows) - 1e4 * (torch.arange(self.num_experts) >= 4)


class WithDropoutOnTheSum(Block):
    """In evaluation its dropout returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return call(self.dropout, output)


class CountsItsCalls(Block):
    """Counts its tokens as well, in a buffer, and draws a random number at each call."""

    tokens_per_expert: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0
        self.register_buffer("tokens_per_expert", torch.zeros(NUM_EXPERTS, dtype=torch.long))

    def route(self, rows: torch.Tensor) -> Decision:
        self.num_calls += 1
        torch.rand(3)
        ids, weights = super().route(rows)
        self.tokens_per_expert += torch.bincount(ids.flatten(), minlength=NUM_EXPERTS)
        return ids, weights


class LooksAtItsRoutersMode(Block):
    """A stand-in for the router must have the router's mode."""

    def route(self, rows: torch.Tensor) -> Decision:
        ids, weights = super().route(rows)
        return ids, weights * (3 if self.gate.training else 1)


class ListWithForward(nn.ModuleList):
    def forward(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output = torch.zeros_like(rows)
        for expert, module in enumerate(self):
            tokens, slots = torch.where(ids == expert)
            returned = call(module, rows[tokens]) * weights[tokens, slots, None]
            output.index_add_(0, tokens, returned)
        return output


class CallsItsListOfExperts(Block):
    """Works like Mixtral in the last versions of transformers 4."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = ListWithForward(feed_forward() for _ in range(NUM_EXPERTS))

    def run(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts, rows, ids, weights)


EXACT: dict[str, Callable[[], Block]] = {
    "plain": Block,
    "mixtral of transformers 4": MixtralOfTransformers4,
    "deepseek of remote code": DeepseekOfRemoteCode,
    "a dense loop": DenseLoop,
    "a dense loop over the experts in use": DenseLoopOverExpertsInUse,
    "experts by name": NamedExperts,
    "more experts than hidden states are wide": lambda: Block(2 * HIDDEN_SIZE + 3, 5),
    "all experts chosen": lambda: Block(top_k=NUM_EXPERTS),
    "top-1": lambda: Block(top_k=1),
    "capacity": WithCapacity,
    "slots of equal number": SlotsOfEqualNumber,
    "scaled, with shared experts": ScaledAndShared,
    "a router of its own": WithRouterOfItsOwn,
    "unused experts": WithUnusedExperts,
    "dropout that does nothing": WithDropoutOnTheSum,
    "counted calls": CountsItsCalls,
    "a look at its router's mode": LooksAtItsRoutersMode,
    "a list of experts that is called": CallsItsListOfExperts,
}

# The matrix products of these involve other tokens than the decision, or none.
MORE_PRODUCTS = {
    "a dense loop",
    "a dense loop over the experts in use",
    "slots of equal number",
}


# Blocks that can't be read this way, or that do something else.


class RoutesPastItsRouter(Block):
    """Never calls its gate, so that a second run on other states makes another choice."""

    def score(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, cast(nn.Linear, self.gate).weight)


class RoutesADenseLoopPastItsRouter(RoutesPastItsRouter, DenseLoop):
    """Never calls its gate either, and its experts' rows show nothing."""


class NormsFirst(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN_SIZE)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, super().forward(call(self.norm, hidden_states)))


class AddsItsInput(Block):
    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return rows + output


class WeightsWithinExperts(Block):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(WeightedExpert() for _ in range(NUM_EXPERTS))

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[expert], rows, weights)


class WeightedExpert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = feed_forward()

    def forward(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.layer, rows) * weights


class WeightsTheInput(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return call(self.experts[expert], rows * weights)


class RoundsTheInput(Block):
    """Has an effect that whole numbers, such as those of tokens, would not show."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, rows.round(), weights)


class GivesTheNegativePart(Block):
    """Makes zero of a token's number, like an empty slot."""

    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, (-rows).relu(), weights)


class ProjectsTheSum(Block):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return call(self.projection, output)


class GatesTheSum(ProjectsTheSum):
    """Multiplies by a module that looks like a shared expert and would give 0.5 for zeros."""

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return call(self.projection, rows).sigmoid() * output


class ProjectsTheSumAndMore(Block):
    """Has a projection whose output is a hidden state, but whose input is not."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * HIDDEN_SIZE, HIDDEN_SIZE)

    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return call(self.projection, torch.cat([rows, output], dim=-1))


class BendsTheSum(Block):
    def finish(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        del rows
        return output.relu()


class RunsExpertsTwice(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().run_expert(expert, rows.repeat(2, 1), weights.repeat(2, 1))[: len(rows)]


class LooksAtItsExperts(Block):
    def run_expert(self, expert: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.experts[expert], nn.Sequential), "no expert"
        return super().run_expert(expert, rows, weights)


OTHER_OUTPUT = "it does more with its experts' outputs than weight them"
OTHER_ROWS = "its experts receive other rows than its hidden states"
REFUSED: dict[str, tuple[Callable[[], Block], str]] = {
    "a router that is not called": (RoutesPastItsRouter, OTHER_OUTPUT),
    "a router that is not called, in a dense loop": (RoutesADenseLoopPastItsRouter, OTHER_OUTPUT),
    "a norm within the block": (NormsFirst, OTHER_ROWS),
    "a residual within the block": (AddsItsInput, OTHER_OUTPUT),
    "weights given to experts": (
        WeightsWithinExperts,
        "its experts take more than hidden states",
    ),
    "weights that scale the input": (WeightsTheInput, OTHER_ROWS),
    "a rounded input": (RoundsTheInput, "a second run sent tokens to other experts"),
    "the negative part of the input": (GivesTheNegativePart, OTHER_ROWS),
    "a projection of the sum": (ProjectsTheSum, "its projection changes what goes into or out of"),
    "a gate of the sum": (GatesTheSum, OTHER_OUTPUT),
    "a projection of the sum and of more": (
        ProjectsTheSumAndMore,
        "its projection changes what goes into or out of",
    ),
    "a bent sum": (BendsTheSum, OTHER_OUTPUT),
    "experts that run twice": (RunsExpertsTwice, "an expert runs on a token more than once"),
    "a look at the experts": (LooksAtItsExperts, "a second run of it ends in AssertionError"),
    "as many experts as hidden states are wide": (
        lambda: Block(HIDDEN_SIZE),
        "it has as many experts as its hidden states are wide",
    ),
    "as many experts, in a dense loop": (
        lambda: DenseLoop(HIDDEN_SIZE),
        "it has as many experts as its hidden states are wide",
    ),
}


class Model(nn.Module):
    """A block between an embedding and a head."""

    def __init__(self, block: Block, *, is_flat: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.mlp = block
        self.head = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE)
        self.is_flat = is_flat

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden_states = call(self.embedding, input_ids)
        if self.is_flat:
            hidden_states = hidden_states.flatten(0, 1)
        output = self.mlp(hidden_states)
        output = output[0] if isinstance(output, tuple) else output
        return call(self.head, hidden_states + output)


def build(make: Callable[[], Block], *, is_flat: bool = False) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Model(make(), is_flat=is_flat)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.6)
    return model.eval()


def tokens(num_rows: int = 2, num_columns: int = 9) -> torch.Tensor:
    """Return every token once: without positions, equal tokens would give equal rows."""
    return torch.arange(3, 3 + num_rows * num_columns).view(num_rows, num_columns)


@dataclass(frozen=True)
class Layer:
    experts_path: str = "mlp.experts"


@dataclass(frozen=True)
class Recorded:
    """One recorded call and its outputs.

    Attributes:
        ids: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
    """

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None
    output: torch.Tensor
    router: str | None


def record(model: Model, input_ids: torch.Tensor, **options: Any) -> Recorded:
    with RoutingRecorder(model, **options) as recorder, torch.no_grad():
        output = call(model, input_ids)
    ((layer,),) = (call.layers for call in recorder.calls)
    assert layer.layer.rule is RoutingRule.SEPARATE_EXPERTS
    return Recorded(
        ids=torch.from_numpy(layer.experts).long(),
        weights=torch.from_numpy(layer.weights),
        scores=None if layer.scores is None else torch.from_numpy(layer.scores),
        output=output,
        router=recorder.find_router(layer.layer),
    )


def run(model: Model, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return call(model, input_ids)


def as_table(ids: torch.Tensor, weights: torch.Tensor, *, num_experts: int) -> torch.Tensor:
    """Return a decision as a weight for every expert, NaN where it was not chosen."""
    table = torch.full((len(ids), num_experts + 1), torch.nan)
    table.scatter_(1, ids.masked_fill(ids < 0, num_experts), weights.float())
    return table[:, :num_experts]


def assert_decision_is_the_blocks(recorded: Recorded, block: Block) -> None:
    assert block.decision is not None
    tables = [
        as_table(ids, weights, num_experts=block.num_experts)
        for ids, weights in ((recorded.ids, recorded.weights), block.decision)
    ]
    torch.testing.assert_close(*tables, equal_nan=True, rtol=1e-6, atol=0)


@pytest.fixture(params=EXACT)
def make_exact(request: pytest.FixtureRequest) -> Callable[[], Block]:
    return EXACT[request.param]


@pytest.mark.parametrize("shape", [(2, 9), (1, 1)])
def test_the_decision_is_the_one_that_the_block_made(
    make_exact: Callable[[], Block], shape: tuple[int, int]
) -> None:
    model = build(make_exact)
    recorded = record(model, tokens(*shape))
    assert_decision_is_the_blocks(recorded, model.mlp)


@pytest.mark.parametrize("make", [Block, DeepseekOfRemoteCode, DenseLoop, ScaledAndShared])
def test_hidden_states_may_be_a_row_a_token(make: Callable[[], Block]) -> None:
    model = build(make, is_flat=True)
    recorded = record(model, tokens())
    assert_decision_is_the_blocks(recorded, model.mlp)


def test_the_decision_reproduces_the_blocks_output(make_exact: Callable[[], Block]) -> None:
    model = build(make_exact)
    seen: dict[str, torch.Tensor] = {}

    def keep(_block: nn.Module, args: tuple[torch.Tensor], output: Any) -> None:
        seen["rows"] = args[0].flatten(0, -2)
        seen["output"] = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)

    model.mlp.register_forward_hook(keep)
    recorded = record(model, tokens())
    total = apply_decisions(model.mlp.experts, seen["rows"], recorded.ids, recorded.weights)
    with torch.no_grad():
        expected = model.mlp.finish(seen["rows"], total.float())
    assert (seen["output"] - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("what", [what for what in EXACT if what not in MORE_PRODUCTS])
def test_the_decision_is_what_met_in_the_matrix_products(what: str) -> None:
    model = build(EXACT[what])
    with GemmAudit(model, [Layer()]) as audit:
        recorded = record(model, tokens())
    pairs = Counter(
        (token, expert)
        for token, row in enumerate(recorded.ids.tolist())
        for expert in row
        if expert >= 0
    )
    assert audit.pairs(Layer()) == pairs


@pytest.mark.parametrize(
    ("what", "is_training"),
    [(what, False) for what in EXACT]
    + [(what, True) for what in EXACT if EXACT[what] is not WithDropoutOnTheSum],
)
def test_the_recorder_leaves_no_trace(what: str, is_training: bool) -> None:
    """Logits, random numbers, hooks, modules and counters are the same as without it."""
    plain, watched = (build(EXACT[what]).train(is_training) for _ in range(2))
    outputs, states = [], []
    modules = list(watched.modules())

    def go_watched(model: Model, input_ids: torch.Tensor) -> torch.Tensor:
        # Otherwise experts with dropout are refused in training.
        return record(model, input_ids, allow_inexact=is_training).output

    for model, go in ((plain, run), (watched, go_watched)):
        torch.manual_seed(11)
        outputs.append(go(model, tokens()))
        states.append(torch.get_rng_state())
    assert torch.equal(*outputs)
    assert torch.equal(*states)
    assert list(watched.modules()) == modules
    assert count_hooks(watched) == 0
    assert vars(watched.mlp).keys() == vars(plain.mlp).keys()
    for (name, left), (_, right) in zip(
        plain.state_dict().items(), watched.state_dict().items(), strict=True
    ):
        assert torch.equal(left, right), name
    assert getattr(watched.mlp, "num_calls", 1) == getattr(plain.mlp, "num_calls", 1) == 1


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_hooks_of_others_see_the_models_own_call_alone() -> None:
    model = build(CallsItsListOfExperts)
    calls: list[str] = []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    run(model, tokens())
    expected = sorted(calls)
    calls.clear()
    record(model, tokens())
    assert sorted(calls) == expected


def test_dropped_tokens_and_unused_experts_are_among_what_was_tried() -> None:
    """The blocks have these cases, so that the tests above prove something about them."""
    dropped = record(build(WithCapacity), tokens()).ids
    assert (dropped == -1).any(dim=1).any()
    assert (dropped == -1).all(dim=1).any()
    assert set(record(build(WithUnusedExperts), tokens()).ids.flatten().tolist()) <= set(range(4))
    most = record(build(EXACT["more experts than hidden states are wide"]), tokens()).ids
    assert most.max() > 2 * HIDDEN_SIZE


@pytest.mark.parametrize("make", [Block, WithCapacity, DenseLoopOverExpertsInUse, NamedExperts])
def test_equal_tokens_are_told_apart(make: Callable[[], Block]) -> None:
    model = build(make)
    recorded = record(model, torch.tensor([[5, 5, 7, 5, 7, 5, 5, 9]]))
    assert_decision_is_the_blocks(recorded, model.mlp)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [Block, MixtralOfTransformers4, DenseLoop, ScaledAndShared])
def test_half_precision_has_the_blocks_decision_too(
    make: Callable[[], Block], dtype: torch.dtype
) -> None:
    model = build(make).to(dtype)
    # More tokens than bfloat16 has consecutive whole numbers.
    input_ids = tokens(1, 50).repeat(7, 1)
    recorded = record(model, input_ids)
    assert model.mlp.decision is not None
    ids, weights = model.mlp.decision
    num_experts = model.mlp.num_experts
    torch.testing.assert_close(
        as_table(recorded.ids, recorded.weights, num_experts=num_experts),
        as_table(ids, weights, num_experts=num_experts),
        equal_nan=True,
        # The scaled block multiplies its sum, which adds a rounding.
        rtol=torch.finfo(dtype).eps if make is ScaledAndShared else 0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("make", "router"), [(Block, "mlp.gate"), (DeepseekOfRemoteCode, None), (DenseLoop, "mlp.gate")]
)
def test_the_router_and_its_scores_are_found_where_it_returns_them(
    make: Callable[[], Block], router: str | None
) -> None:
    model = build(make)
    recorded = record(model, tokens(), keep_scores=True)
    assert recorded.router == router
    if router is None:
        assert recorded.scores is None
    else:
        assert recorded.scores is not None
        with torch.no_grad():
            scores = call(model.mlp.gate, call(model.embedding, tokens()).flatten(0, 1))
        assert torch.equal(recorded.scores, scores)


@pytest.mark.parametrize("shape", [(2, 9), (1, 1)])
@pytest.mark.parametrize("what", REFUSED)
def test_a_block_that_can_not_be_read_is_refused_and_left_as_it_was(
    what: str, shape: tuple[int, int]
) -> None:
    make, reason = REFUSED[what]
    model = build(make)
    modules, plain = list(model.modules()), run(model, tokens(*shape))
    with pytest.raises(UntraceableError, match=f"Can't tell what mlp routes: {reason}"):
        record(model, tokens(*shape))
    assert list(model.modules()) == modules
    assert count_hooks(model) == 0
    assert torch.equal(run(model, tokens(*shape)), plain)


def test_dropout_within_experts_is_refused_in_training() -> None:
    model = build(WithRouterOfItsOwn)
    record(model, tokens())
    with pytest.raises(UntraceableError, match=r"mlp\.experts\.\d draws random numbers"):
        record(model.train(), tokens())


def test_dropout_on_the_sum_is_refused_in_training() -> None:
    model = build(WithDropoutOnTheSum).train()
    with pytest.raises(UntraceableError, match="its dropout changes what goes into or out of"):
        record(model, tokens())


def test_an_exception_within_an_expert_is_the_users_and_leaves_nothing_behind() -> None:
    model = build(Block)
    modules = list(model.modules())

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    handle = model.mlp.experts[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        record(model, tokens())
    handle.remove()
    assert list(model.modules()) == modules
    assert not any(isinstance(module, StandIn) for module in model.modules())
    assert count_hooks(model) == 0
    assert_decision_is_the_blocks(record(model, tokens()), model.mlp)


def test_a_call_that_failed_leaves_nothing_for_the_next() -> None:
    model = build(MixtralOfTransformers4)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        handle = model.head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens())
        handle.remove()
        model(tokens())
    assert [call.call for call in recorder.calls] == [0]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("make", [MixtralOfTransformers4, DeepseekOfRemoteCode])
def test_offloaded_experts_have_the_same_decisions(
    make: Callable[[], Block], offload: str, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    plain = record(build(make), tokens())
    model = build(make)
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=device)
    assert all(parameter.is_meta for parameter in model.mlp.experts.parameters())
    recorded = record(model, tokens())
    assert torch.equal(recorded.ids, plain.ids)
    assert torch.equal(recorded.weights, plain.weights)
    assert torch.equal(recorded.output, plain.output)
    assert all(parameter.is_meta for parameter in model.mlp.experts.parameters())


def test_recording_twice_at_once_gives_the_same_decisions() -> None:
    model = build(DeepseekOfRemoteCode)
    with RoutingRecorder(model) as outer, RoutingRecorder(model) as inner, torch.no_grad():
        model(tokens())
    outer_rows, inner_rows = outer.to_frame(), inner.to_frame()
    assert len(outer_rows) == tokens().numel() * TOP_K
    assert outer_rows.equals(inner_rows)


def test_gradients_pass_as_without_the_recorder() -> None:
    gradients = []
    for is_recorded in (False, True):
        model = build(DeepseekOfRemoteCode).train()
        with RoutingRecorder(model) if is_recorded else torch.enable_grad():
            model(tokens()).square().mean().backward()
        gradients.append(model.mlp.gate.get_parameter("weight").grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])
