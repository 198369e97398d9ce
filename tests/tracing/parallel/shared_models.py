"""Tiny models that two processes share: what they record, and what their own experts receive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.expert_parallel import AllReduceEP, EPImplementationInterface

from moetool.errors import UntraceableError
from moetool.tracing.parallel.loading import make_distributed_config
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.recording.recorder import RoutingRecorder
from tests.tracing.parallel.two_processes import NUM_PROCESSES

FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")
# The last row of the batch has this many pads.
NUM_PADS = 7
NUM_NEW_TOKENS = 4


@dataclass(frozen=True)
class Received:
    """The decision that one call of a layer's experts received in one process.

    Attributes:
        experts: Ids as the process numbers its experts. # (num_slots, top_k)
        weights: # (num_slots, top_k)
        num_held: The number of experts whose weights the process holds.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    num_held: int


@dataclass(frozen=True)
class Recorded:
    """The decisions that a process recorded of one model.

    Attributes:
        frame: Of the recorder.
        num_experts: Of each layer, as the recorder found them.
        received: What its own experts received in each call of each layer, in order.
    """

    frame: pd.DataFrame
    num_experts: list[int]
    received: list[Received] = field(default_factory=list)


def load(folder: Path, plan: ParallelPlan | None, **wishes: Any) -> PreTrainedModel:
    """Return a model that the processes share under a plan, or that each has, in float32."""
    if plan is not None:
        wishes["distributed_config"] = make_distributed_config(plan, number=NUM_PROCESSES)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **wishes
    )
    return model.eval()


def run(model: PreTrainedModel) -> None:
    """Read a batch with pads, and continue it."""
    ids = torch.randint(3, 250, (3, 19), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    real[2, -NUM_PADS:] = 0
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=real)
        model.generate(
            ids, attention_mask=real.flip(1), max_new_tokens=NUM_NEW_TOKENS, do_sample=False
        )


def record(model: PreTrainedModel) -> Recorded:
    """Return what is recorded of a run."""
    with RoutingRecorder(model) as recorder:
        run(model)
    return Recorded(recorder.to_frame(), [layer.num_experts for layer in recorder.layers])


def record_shared(folder: Path, plan: ParallelPlan) -> Recorded:
    """Return what this process records of a shared model, and what its experts receive."""
    received: list[Received] = []
    (experts_class,) = {
        type(module) for path, module in load(folder, None).named_modules() if is_experts(path)
    }
    own = experts_class.forward

    def forward(self: nn.Module, hidden: Any, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        num_held = next(p.shape[0] for p in self.parameters() if p.dim() == 3)
        received.append(Received(ids.clone(), weights.clone(), num_held))
        return own(self, hidden, ids, weights)

    with patch.object(experts_class, "forward", forward):
        recorded = record(load(folder, plan))
    return Recorded(recorded.frame, recorded.num_experts, received)


def is_experts(path: str) -> bool:
    """Return whether a module path is that of a layer's experts."""
    return path.rpartition(".")[2] == "experts"


class TamperedEP(AllReduceEP):
    """Experts that receive something else than their part of the decision."""

    def tamper(self, ids: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return other ids and weights."""
        return ids, weights

    def __call__(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        own_forward = self.experts_forward

        def tampered(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
            return own_forward(hidden, *self.tamper(ids, weights))

        self.experts_forward = tampered
        try:
            return super().__call__(hidden, ids, weights)
        finally:
            self.experts_forward = own_forward


class OtherIds(TamperedEP):
    """Every id is that of the expert before."""

    def tamper(self, ids: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.where(
            ids < self.num_local_experts, (ids + 1) % self.num_local_experts, ids
        ), weights


class OtherWeights(TamperedEP):
    """One weight is the next number that float32 has."""

    def tamper(self, ids: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
        place = tuple(weights.nonzero()[0].tolist())
        weights = weights.clone()
        weights[place] = weights[place].nextafter(torch.tensor(torch.inf))
        return ids, weights


class ForeignWeights(TamperedEP):
    """A choice of another process's expert has a weight here."""

    def tamper(self, ids: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
        return ids, weights.masked_fill(ids == self.num_local_experts, 0.5)


class ForeignChoices(TamperedEP):
    """A choice of another process's expert is one of an expert here, with weight 0."""

    def tamper(self, ids: torch.Tensor, weights: torch.Tensor) -> Sequence[torch.Tensor]:
        return ids.clamp(max=self.num_local_experts - 1), weights


class FewerTokens(TamperedEP):
    """Only some of the tokens go to the experts."""

    def __call__(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        half = len(ids) // 2
        return torch.cat(
            [super().__call__(hidden[:half], ids[:half], weights[:half]), hidden[half:]]
        )


class RunTwice(TamperedEP):
    """The experts run twice."""

    def __call__(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        super().__call__(hidden, ids, weights)
        return super().__call__(hidden, ids, weights)


class NeverRun(TamperedEP):
    """The experts don't run."""

    def __call__(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        del ids, weights
        return hidden


# By what is wrong, the words in which the recorder refuses it.
TAMPERED = {
    OtherIds: "received other ids",
    OtherWeights: "received other weights",
    ForeignWeights: "received choices of experts that it does not hold",
    ForeignChoices: "received choices of experts that it does not hold",
    FewerTokens: "received other tokens",
    RunTwice: "ran twice",
    NeverRun: "ran unseen",
}


def catch_refusals(folder: Path) -> dict[str, str]:
    """Return the error of the recorder for each way of tampering; empty where there is none."""
    errors = {}
    for kind in TAMPERED:
        EPImplementationInterface.register(kind.__name__, kind)
        errors[kind.__name__] = _catch(folder, kind.__name__)
    # transformers' own: processes exchange tokens, and none of them sees all decisions.
    errors["all_to_all"] = _catch(folder, "all_to_all")
    return errors


def _catch(folder: Path, implementation: str) -> str:
    config = make_distributed_config(ParallelPlan.EXPERT, number=NUM_PROCESSES)
    config.ep_implementation = implementation
    model = load(folder, None, distributed_config=config)
    try:
        record(model)
    except UntraceableError as error:
        return str(error)
    return ""
