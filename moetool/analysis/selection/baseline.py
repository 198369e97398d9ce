"""Choices that would be made from a router that chooses at random, and how far they agree.

The random router has the trace's decisions, but each choice goes to an expert drawn uniformly from
those that the decision has not chosen yet: a choice that ran no expert in the trace runs none, and
weights are those of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.scores import score_experts
from moetool.analysis.selection.sums.parts import ALL
from moetool.analysis.selection.sums.reading import LayerSums, list_halves
from moetool.analysis.statistics.decision_sizes import make_sizes
from moetool.analysis.statistics.random_loads import list_sizes, simulate_loads

NUM_ROUTERS = 128

Floats = NDArray[np.float64]
# Returns which experts are chosen, of several routers. # (num_routers, num_experts)
Choose = Callable[[Floats], NDArray[np.bool_]]


@dataclass(frozen=True)
class RandomRouters:
    """Figures of a layer under several random routers.

    Attributes:
        scores: Of each routed expert, from all prompts. # (num_routers, num_experts)
        half_scores: From half of the prompts; None if there are no halves with decisions in both.
            # (num_routers, num_experts)
        loads: Share of the assignments that each routed expert gets. # (num_routers, num_experts)
    """

    scores: Floats
    half_scores: Floats | None
    loads: Floats

    def count_chosen(self, choose: Choose) -> float:
        """Return how many experts are chosen from all prompts, on average."""
        return float(choose(self.scores).sum(axis=1).mean())

    def measure_overlap(self, choose: Choose) -> float | None:
        """Return the mean overlap of choices from two halves, which are independent of each other."""
        return None if self.half_scores is None else average_overlap(choose(self.half_scores))

    def share_of(self, choose: Choose) -> float:
        """Return the share of the assignments that the experts chosen from all prompts get."""
        return float((choose(self.scores) * self.loads).sum(axis=1).mean())


def average_overlap(is_chosen: NDArray[np.bool_]) -> float:
    """Return the mean over all pairs of choices of `2 |A ∩ B| / (|A| + |B|)`.

    Args:
        is_chosen: Several choices, at least two. # (num_choices, num_experts)
    """
    chosen = is_chosen.astype(np.float64)
    number = chosen.sum(axis=1)
    total = number[:, None] + number
    overlap = np.divide(2 * chosen @ chosen.T, total, out=np.ones_like(total), where=total > 0)
    return float((overlap.sum() - overlap.trace()) / (overlap.size - len(overlap)))


def simulate_routers(layer: LayerSums, *, by: Score, average: Average) -> RandomRouters | None:
    """Return the figures of random routers in place of a layer's.

    Args:
        layer: With a sample of decisions, unless the score is the mean over tokens of their number.
        by: Score of the experts, of those that a trace has.
        average: Average that the score is.

    Returns:
        None without decisions.
    """
    sums = layer.sums
    if sums is None or not sums.sizes[ALL].sum():
        return None
    measured = score_experts(sums, ALL, by=by, average=average, top_k=layer.decision_size)
    assert measured is not None
    values, share = _list_decisions(layer, by=by, average=average)
    halves = [part for pair in list_halves(layer) for part in pair]

    def simulate(parts: Sequence[int]) -> tuple[Floats, Floats]:
        num_tokens = max(1, round(float(sums.sizes[parts].sum(axis=1).mean())))
        loads = simulate_loads(
            layer.num_ids, values, share, num_tokens=num_tokens, num_draws=NUM_ROUTERS
        )
        total = loads.sum(axis=2, keepdims=True)
        shares = loads / np.where(total > 0, total, 1)
        # All scores add up to what they do in the trace.
        mine = shares[:, :, : layer.shape.num_experts]
        return mine[0] * float(measured.sum()), mine[-1]

    scores, loads = simulate([ALL])
    return RandomRouters(
        scores=scores, half_scores=simulate(halves)[0] if halves else None, loads=loads
    )


def expect_missed(layer: LayerSums) -> float:
    """Return the expected number of experts that no decision of a random router chooses.

    `E * prod (1 - n / E)` over decisions of n experts.
    """
    assert layer.sums is not None
    sizes = make_sizes(layer.sums.sizes[ALL])
    if any(size >= layer.num_ids for size, _ in sizes):
        return 0.0
    log = math.fsum(number * math.log1p(-size / layer.num_ids) for size, number in sizes)
    return layer.num_ids * math.exp(log)


def _list_decisions(layer: LayerSums, *, by: Score, average: Average) -> tuple[Floats, Floats]:
    """Return what choices add to scores, and last to loads, for `simulate_loads`."""
    assert layer.sums is not None
    if by is Score.TOKEN and average is Average.MICRO:
        sizes = layer.sums.sizes[ALL]
        return list_sizes(make_sizes(sizes), int(sizes.sum()))
    assert layer.sample is not None
    weights, has_run = np.nan_to_num(layer.sample.weights), np.isfinite(layer.sample.weights)
    score = weights if by is Score.GATE else has_run.astype(np.float64)
    if average is Average.MACRO:
        score = score * layer.sample.inverse_size[:, None]
    number = len(weights)
    return np.stack([score, has_run]), np.full(number, 1 / number)
