"""Blocks with separate experts as published models have them. Each keeps its decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

HIDDEN_SIZE, NUM_EXPERTS, TOP_K = 16, 6, 2

# Ids and weights. # (num_tokens, top_k)
Decision = tuple[torch.Tensor, torch.Tensor]


def feed_forward(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(HIDDEN_SIZE, 24), nn.SiLU(), nn.Dropout(dropout), nn.Linear(24, HIDDEN_SIZE)
    )


def call(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, module(*args))


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
    """Has dropout, which in evaluation returns its input."""

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
    "its own router": WithRouterOfItsOwn,
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
