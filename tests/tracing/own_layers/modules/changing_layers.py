"""Layers that do something else from a later call on, or while they are recorded."""

from __future__ import annotations

import torch

from tests.tracing.own_layers.modules.layers import RouterParameter, Tensor

# Outside of modules, so that a second run finds it as it was in the call.
IS_LATER = [False]


class Changing(RouterParameter):
    """Mixes as usual at first."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        return self.mix_later(rows, scores) if IS_LATER[0] else super().mix(rows, scores)

    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        raise NotImplementedError

    def mix_as_usual(self, rows: Tensor, scores: Tensor) -> Tensor:
        return RouterParameter.mix(self, rows, scores)

    def run_all(self, rows: Tensor) -> Tensor:
        return torch.stack([expert(rows) for expert in self.experts], dim=1)


class ForgetsItsSum(Changing):
    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        self.mix_as_usual(rows, scores)
        return rows.clone()


class AddsTheMeanOfAll(Changing):
    """Adds up as usual, and then what all experts return, chosen or not."""

    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        mean = self.run_all(rows).mean(dim=1)
        return self.mix_as_usual(rows, scores) + mean.roll(1, dims=0).relu()


class TakesTheBest(Changing):
    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        del scores
        return self.run_all(rows).amax(dim=1)


class WeighsByOutput(Changing):
    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        del scores
        outputs = self.run_all(rows)
        weights: Tensor = outputs.norm(dim=-1).softmax(dim=-1)
        return (outputs * weights[..., None]).sum(dim=1)


class BendsWhatOneReturns(Changing):
    """Squares the outputs of one expert before it adds them up."""

    def run(self, expert: int, rows: Tensor) -> Tensor:
        output = super().run(expert, rows)
        return output.square() if IS_LATER[0] and expert == 1 else output

    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        return self.mix_as_usual(rows, scores)


class SendsToSlots(Changing):
    """Soft MoE: experts run on mixtures of all tokens."""

    def mix_later(self, rows: Tensor, scores: Tensor) -> Tensor:
        slots = scores.softmax(dim=0).T @ rows  # (num_experts, width)
        outputs = torch.cat([e(slots[i : i + 1]) for i, e in enumerate(self.experts)])
        return scores.softmax(dim=1) @ outputs


class LooksAtTheMode(Changing):
    """Runs all experts, and weighs them differently where no gradients are wanted, as in second runs."""

    def mix(self, rows: Tensor, scores: Tensor) -> Tensor:
        if IS_LATER[0] and torch.is_grad_enabled():
            scores = scores.roll(1, dims=-1)
        outputs = self.run_all(rows)
        return rows + (outputs * scores.softmax(dim=-1)[..., None]).sum(dim=1)


OTHER_OUTPUT = "it does more with its experts' outputs than weight them"
NOT_FROM_SUM = "its output does not follow from the sum of its experts' outputs"
CHANGING: dict[type[Changing], str] = {
    ForgetsItsSum: NOT_FROM_SUM,
    AddsTheMeanOfAll: "",
    TakesTheBest: OTHER_OUTPUT,
    WeighsByOutput: "outputs of experts without a weight change its output",
    BendsWhatOneReturns: "",
    SendsToSlots: "its experts receive other rows than its hidden states",
    LooksAtTheMode: "a second run of it gives another output",
}
