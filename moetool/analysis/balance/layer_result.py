"""The balance of one layer as a value, with that of its groups and phases."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.analysis.balance.between_prompts.hot import HotExpert
from moetool.analysis.balance.capacity.result import LayerShare
from moetool.analysis.balance.evenness import Evenness, find_over_mean


@dataclass(frozen=True)
class Baseline(Evenness):
    """The figures that a uniform random router is expected to show on as many tokens.

    Its decisions choose as many experts as those of the trace. All but `load` are None where top-k
    is unknown.

    Attributes:
        load: Assignments of each expert: the mean load.
        max_violation_batch: As in `LayerBalance`.
        unused_per_prompt: As in `LayerBalance`.
        aux_loss: As in `LayerBalance`.
        mean_squared: As in `LayerBalance`.
    """

    load: float
    max_violation_batch: float | None = None
    unused_per_prompt: float | None = None
    aux_loss: float | None = None
    mean_squared: float | None = None

    @property
    def max_over_mean_batch(self) -> float | None:
        """Mean of `max_over_mean` over batches."""
        return find_over_mean(self.max_violation_batch)


@dataclass(frozen=True)
class PartBalance(Evenness):
    """The balance of one layer over a part of the tokens.

    Attributes:
        name: The group or the phase.
        num_tokens: Decisions of the layer for its tokens.
        load: Assignments of each expert.
        dead: Experts that were never chosen.
        baseline: Of a uniform random router on as many tokens.
    """

    name: str
    num_tokens: int
    load: tuple[int, ...]
    dead: tuple[int, ...]
    baseline: Baseline


@dataclass(frozen=True)
class CountedLayer:
    """The part of a layer's result that says which layer it is about.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        num_experts: Routed experts, including identity experts, which come last.
        top_k: Assignments per decision, at most; None for a load table that doesn't state it.
        num_tokens: Tokens with a decision in the layer; None where top-k is unknown.
    """

    stack: str
    layer: int
    num_experts: int
    top_k: int | None
    num_tokens: int | None


@dataclass(frozen=True)
class LayerBalance(Evenness, CountedLayer):
    """The balance of one layer; None stands for what is unknown.

    Attributes:
        load: Assignments of each expert.
        dead: Experts that were never chosen.
        hot: Experts whose load is surely above that of any of a random router's, hottest first.
        max_violation_batch: Mean of `max_violation` over batches.
        prompt_cv: The cv that an even router would show because it routes whole prompts alike:
            square root of `E sum(variance of an expert's share over samples of prompts)`. None for
            fewer than two prompts.
        uneven_p_value: The chance that an even router shows such a cv on as many prompts; None for
            fewer than three.
        is_uneven: Whether the load is surely uneven: cv is above that of a random router, and
            p-values as small make up no more than 5 % of false discoveries over all layers.
        num_prompts: Prompts in which an expert ran.
        prompts_choosing: Of these, how many chose each expert.
        unused_per_prompt: Mean number of experts that a prompt never chose.
        dropped: Share of the layer's assignments dropped at each capacity factor.
        expert_choice: Share of the layer's tokens that expert choice leaves without an expert.
        aux_loss: The layer's part of the loss `switch`.
        mean_squared: The layer's part of the loss `mean_squared`.
        z_loss: The layer's part of the loss `z_loss`.
        groups: By the column that groups tokens; empty if there is one group.
        phases: Prefill and decode; empty if the trace has one of them.
        baseline: Of a uniform random router on as many tokens.
    """

    load: tuple[int, ...]
    dead: tuple[int, ...]
    hot: tuple[HotExpert, ...]
    max_violation_batch: float | None
    prompt_cv: float | None
    uneven_p_value: float | None
    is_uneven: bool | None
    num_prompts: int | None
    prompts_choosing: tuple[int, ...] | None
    unused_per_prompt: float | None
    dropped: tuple[LayerShare, ...]
    expert_choice: tuple[LayerShare, ...]
    aux_loss: float | None
    mean_squared: float | None
    z_loss: float | None
    groups: tuple[PartBalance, ...]
    phases: tuple[PartBalance, ...]
    baseline: Baseline

    @property
    def max_over_mean_batch(self) -> float | None:
        """Mean of `max_over_mean` over batches."""
        return find_over_mean(self.max_violation_batch)
