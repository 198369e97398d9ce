"""The parameters of experts that a token runs, by a number of choices or by recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.parameters import ActiveRange
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.table import join_ranges
from moetool.anatomy.structure.module_structure import ExpertSet


@dataclass(frozen=True)
class Choice:
    """The number of experts that each run of a layer chooses for a token.

    Attributes:
        fewest: The fewest that a run chooses.
        most: The most that a run chooses.
        mean: The mean over recorded tokens; None if nothing was recorded.
        decisions: What was recorded; None if only the number is known.
    """

    fewest: int
    most: int
    mean: float | None = None
    decisions: Decisions | None = field(default=None, repr=False)

    @property
    def exact(self) -> int | None:
        """The number, if it is the same for every token; else None."""
        return self.most if self.fewest == self.most else None


@dataclass(frozen=True)
class Decisions:
    """The recorded decisions of one layer.

    Attributes:
        tokens: A number for each token of all calls, the same in each run of the layer. # (num_rows,)
        experts: The chosen expert, -1 where none ran. # (num_rows,)
        token_axis: The axes that tokens are counted along, `input` or `block`; empty if both.
        are_of_same_tokens: Whether the layer met the same tokens in each run of a call.
    """

    tokens: NDArray[np.int64]
    experts: NDArray[np.int64]
    token_axis: str
    are_of_same_tokens: bool


@dataclass(frozen=True)
class ChosenParameters:
    """Parameters that a token runs.

    Attributes:
        active: The range over tokens.
        mean: The mean over recorded tokens; None if unknown.
    """

    active: ActiveRange
    mean: float | None


def count_chosen(experts: ExpertSet, choices: Mapping[MoeLayer, Choice]) -> ChosenParameters | None:
    """Return the parameters of experts that a token runs, with those that the experts share.

    None if the choice of one of the layers is unknown.

    Args:
        experts: Experts, and the layers that choose among them.
        choices: By layer, also of layers within experts.
    """
    costs = _count_each(experts, choices)
    known = [choices[layer] for layer in experts.layers if layer in choices]
    if costs is None or len(known) < len(experts.layers):
        return None
    recorded = [choice.decisions for choice in known if choice.decisions is not None]
    if len(recorded) == len(known):
        return _count_recorded(experts, costs, recorded)
    common = experts.parameters.common
    least, most = np.sort(costs.fewest), np.sort(costs.most)[::-1]
    ranges: list[ActiveRange | None] = [
        ActiveRange(int(least[: choice.fewest].sum()), int(most[: choice.most].sum()))
        for choice in known
    ]
    # A layer that several places hold may choose other experts in each.
    ranges += ranges[:1] * (experts.num_places - len(known))
    joined = join_ranges(ranges, num_params=experts.parameters.num_params - common)
    assert joined is not None
    return ChosenParameters(ActiveRange(joined.fewest + common, joined.most + common), None)


@dataclass(frozen=True)
class _Costs:
    """Parameters that a token runs of each expert if it chose it; NaN for an unknown mean.

    All are # (num_experts,)
    """

    fewest: NDArray[np.int64]
    most: NDArray[np.int64]
    mean: NDArray[np.float64]


def _count_each(experts: ExpertSet, choices: Mapping[MoeLayer, Choice]) -> _Costs | None:
    sizes = np.array(experts.parameters.sizes, dtype=np.int64)
    fewest, most, mean = sizes.copy(), sizes.copy(), sizes.astype(np.float64)
    for expert, sets in experts.inner.items():
        for inner in sets:
            chosen = count_chosen(inner, choices)
            if chosen is None:
                return None
            rest = inner.parameters.num_params
            fewest[expert] += chosen.active.fewest - rest
            most[expert] += chosen.active.most - rest
            mean[expert] += (np.nan if chosen.mean is None else chosen.mean) - rest
    return _Costs(fewest, most, mean)


def _count_recorded(
    experts: ExpertSet, costs: _Costs, recorded: Sequence[Decisions]
) -> ChosenParameters | None:
    """Return what recorded tokens ran; None if runs were over different tokens."""
    first, *others = recorded
    # Along other axes than the input's, only runs of one layer can be over the same tokens.
    is_clear = not others and first.token_axis != "" and first.are_of_same_tokens
    if not is_clear and any(decisions.token_axis != "input" for decisions in recorded):
        return None
    tokens = np.concatenate([decisions.tokens for decisions in recorded])
    chosen = np.concatenate([decisions.experts for decisions in recorded])
    _, tokens = np.unique(tokens, return_inverse=True)
    num_tokens, num_ids = int(tokens.max()) + 1, len(costs.fewest)
    # An expert that a token runs twice has its parameters once.
    ran = np.unique((tokens * num_ids + chosen)[chosen >= 0])
    least, most = np.zeros((2, num_tokens), dtype=np.int64)
    mean = np.zeros(num_tokens)
    for sums, cost in ((least, costs.fewest), (most, costs.most), (mean, costs.mean)):
        np.add.at(sums, ran // num_ids, cost[ran % num_ids])
    common, average = experts.parameters.common, float(mean.mean())
    return ChosenParameters(
        ActiveRange(int(least.min()) + common, int(most.max()) + common),
        None if np.isnan(average) else average + common,
    )
