"""Layers whose routing is not what it looks like, and those that no table of weights describes."""

from __future__ import annotations

import torch
from torch import nn

from tests.tracing.own_layers.modules.layers import (
    NUM_EXPERTS,
    TOP_K,
    WIDTH,
    Layer,
    RouterParameter,
    Tensor,
    feed_forward,
)

# Outside of modules, so that a second run does not find it as it was.
NUM_CALLS = [0]


class ChangesItsMind(Layer):
    """Routes differently each time that it runs."""

    def score(self, rows: Tensor) -> Tensor:
        NUM_CALLS[0] += 1
        return super().score(rows).roll(NUM_CALLS[0], dims=-1)


class AddsToOthers(RouterParameter):
    """Adds what experts make of a token to the next one."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        return super().mix(rows, scores).roll(1, dims=0)


class BestOfExperts(Layer):
    """Takes the largest element among the experts' outputs."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        del scores
        return torch.stack([expert(rows) for expert in self.experts]).amax(dim=0)


class SumOfExponents(RouterParameter):
    """Adds up in log space, as the first version of a well-known repository did."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights = scores.softmax(dim=-1)
        outputs = torch.stack([expert(rows) for expert in self.experts], dim=1)
        return (outputs.exp() * weights[..., None]).sum(dim=1).log()


class SoftSlots(RouterParameter):
    """Soft MoE: experts run on mixtures of all tokens."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        slots = scores.softmax(dim=0).T @ rows  # (num_experts, width)
        outputs = torch.cat([e(slots[i : i + 1]) for i, e in enumerate(self.experts)])
        return scores.softmax(dim=1) @ outputs


class SoftSlotsWithScores(SoftSlots):
    """Returns its scores as well, which do not depend on the slots."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(x.reshape(-1, WIDTH))
        return self.mix(x.reshape(-1, WIDTH), scores).view_as(x), scores


class AdaptsHalf(RouterParameter):
    """Projects the outputs of half of its experts before it adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(WIDTH, WIDTH)

    def run(self, expert: int, rows: Tensor) -> Tensor:
        output = super().run(expert, rows)
        if expert % 2:
            output = self.adapter(output)
        return output


class WeightsByOutput(Layer):
    """Weights experts by the size of what they return."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        del scores
        outputs = torch.stack([expert(rows) for expert in self.experts], dim=1)
        weights: Tensor = outputs.norm(dim=-1).softmax(dim=-1)
        return (outputs * weights[..., None]).sum(dim=1)


class OnePastAnother(Layer):
    """Runs experts one after the other, each on what the one before returned."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights = scores.softmax(dim=-1)
        for expert in range(NUM_EXPERTS):
            rows = rows + weights[:, expert, None] * self.run(expert, rows)
        return rows


class PastItsExperts(Layer):
    """Uses the weights of its experts, which never run as modules."""

    def run(self, expert: int, rows: Tensor) -> Tensor:
        first, _, last = self.experts[expert]
        inner = nn.functional.gelu(nn.functional.linear(rows, first.weight, first.bias))
        return nn.functional.linear(inner, last.weight, last.bias)


class AlsoItsMean(RouterParameter):
    """Returns the mean of all experts as well; the sum is still that of the chosen ones."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, WIDTH)
        total = x + self.mix(rows, self.score(rows)).view_as(x)
        mean = torch.stack([expert(rows) for expert in self.experts]).mean(dim=0)
        return total, mean


class SharedAfterwards(Layer):
    """Runs a norm over the sum of routed experts and of one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.shared_expert = feed_forward()
        self.norm = nn.LayerNorm(WIDTH)

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        output: Tensor = self.norm(super().mix(rows, scores) + self.shared_expert(rows))
        return output


class EveryChoiceAgain(RouterParameter):
    """An expert chooses the tokens: as many for each expert."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        weights, tokens = scores.softmax(dim=-1).T.topk(TOP_K, dim=-1)
        output = torch.zeros_like(rows)
        for expert in range(NUM_EXPERTS):
            chosen = tokens[expert]
            output = output.index_add(
                0, chosen, weights[expert, :, None] * self.run(expert, rows[chosen])
            )
        return rows + output

    def table(self, rows: Tensor) -> Tensor:
        weights = self.score(rows).softmax(dim=-1)
        least = weights.sort(dim=0, descending=True).values[TOP_K - 1]
        return weights.masked_fill(weights < least, torch.nan)


OTHER_OUTPUT = "it does more with its experts' outputs than weight them"
UNWEIGHTED = "outputs of experts without a weight change its output"
REFUSED: dict[str, tuple[type[Layer], str]] = {
    "changes its mind": (ChangesItsMind, "a second run"),
    "best of experts": (BestOfExperts, OTHER_OUTPUT),
    "sum of exponents": (SumOfExponents, OTHER_OUTPUT),
    "soft slots": (SoftSlots, "its experts receive other rows than its hidden states"),
    "adapts half": (AdaptsHalf, "its output does not follow from the sum of its experts' outputs"),
    "weights by output": (WeightsByOutput, UNWEIGHTED),
    "one past another": (OnePastAnother, "a second run sent tokens to other experts"),
    "past its experts": (PastItsExperts, "none of its experts ran as a module"),
    "also its mean": (AlsoItsMean, UNWEIGHTED),
}
EXACT: dict[str, type[Layer]] = {
    "adds to others": AddsToOthers,
    "shared afterwards": SharedAfterwards,
    "every choice again": EveryChoiceAgain,
}
