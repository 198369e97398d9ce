"""Shares of what experts of limited size drop, next to those of a random router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.drops import FACTORS, POLICIES, DropCounter
from moetool.analysis.balance.capacity.expected import expect_dropped
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.capacity.kinds import NUM_DECILES, describe_full_batch
from moetool.analysis.balance.capacity.result import (
    CapacityShare,
    DroppedBaseline,
    ExpertChoice,
    LayerShare,
)
from moetool.analysis.balance.random_router import expect_evenness
from moetool.analysis.statistics.decision_sizes import Sizes, make_sizes

# Distinct sizes of batches for which an expectation is computed; more are represented by as many.
_MOST_SIZES_OF_LOADS = 48
_MOST_SIZES_OF_DROPS = 512
# Batches with shorter decisions for which the largest load is expected: each takes milliseconds.
_MOST_OTHERS_OF_LOADS = 16


@dataclass(frozen=True)
class ExpectedDrops:
    """The assignments that a uniform random router would drop of some batches.

    Attributes:
        num_assignments: # (10,), by position decile, like the following.
        by_position: Dropped if tokens come in the order of the batch. # (num_factors, 10)
        by_probability: Dropped if assignments come in any other order. # (num_factors, 10)
    """

    num_assignments: NDArray[np.float64]
    by_position: NDArray[np.float64]
    by_probability: NDArray[np.float64]


def make_capacity(
    layers: Sequence[DropCounter], *, tokens_per_batch: int | None
) -> tuple[CapacityShare, ...]:
    """Return the shares that all layers together would drop."""
    total = np.sum([drops.num_assignments for drops in layers], axis=0)  # (10,)
    dropped = np.sum([drops.num_dropped for drops in layers], axis=0)
    expected = [_expect_drops(drops) for drops in layers]
    expected_total = np.sum([each.num_assignments for each in expected], axis=0)
    if any(drops.top_k is None for drops in layers):
        # The random router is unknown in a layer, and so over all.
        expected_total = np.zeros(NUM_DECILES)
    shares = []
    for index, policy in enumerate(POLICIES):
        # How many are dropped is the same in any order; which ones takes weights.
        is_known = all(
            drops.has_places and (policy == "position" or drops.has_weights) for drops in layers
        )
        by_policy = np.sum(
            [
                each.by_position if policy == "position" else each.by_probability
                for each in expected
            ],
            axis=0,
        )
        for number, factor in enumerate(FACTORS):
            shares.append(
                CapacityShare(
                    factor=factor,
                    policy=policy,
                    tokens_per_batch=tokens_per_batch or mean_batch(layers),
                    dropped_share=divide(float(dropped[0, number].sum()), total.sum()),
                    by_position=_divide_all(dropped[index, number], total) if is_known else None,
                    baseline=DroppedBaseline(
                        divide(float(by_policy[number].sum()), expected_total.sum()),
                        _divide_all(by_policy[number], expected_total),
                    ),
                )
            )
    return tuple(shares)


def make_expert_choice(
    counters: Sequence[ExpertChoiceCounter], *, tokens_per_batch: float | None
) -> tuple[ExpertChoice, ...]:
    """Return the tokens that expert choice leaves without an expert, over all layers."""
    num_tokens = sum(counter.num_tokens for counter in counters)
    return tuple(
        ExpertChoice(
            factor,
            tokens_per_batch,
            divide(float(sum(counter.num_left[index] for counter in counters)), num_tokens),
            divide(float(sum(counter.expected_left[index] for counter in counters)), num_tokens),
        )
        for index, factor in enumerate(FACTORS)
        if num_tokens
    )


def mean_batch(layers: Sequence[DropCounter]) -> float | None:
    """Return the mean number of tokens of a batch; None where top-k is unknown."""
    known = [drops for drops in layers if drops.top_k is not None]
    return divide(sum(each.num_tokens for each in known), sum(each.num_batches for each in known))


def make_layer_shares(drops: DropCounter) -> tuple[LayerShare, ...]:
    """Return the shares that one layer would drop, at each capacity factor."""
    expected = _expect_drops(drops)
    total, expected_total = drops.num_assignments.sum(), expected.num_assignments.sum()
    return tuple(
        LayerShare(
            factor,
            divide(float(drops.num_dropped[0, number].sum()), total),
            divide(float(expected.by_position[number].sum()), expected_total),
        )
        for number, factor in enumerate(FACTORS)
    )


def _expect_drops(drops: DropCounter) -> ExpectedDrops:
    if drops.top_k is None:
        return ExpectedDrops(*np.zeros((1, NUM_DECILES)), *np.zeros((2, len(FACTORS), NUM_DECILES)))
    full = _thin(drops.kinds.full, _MOST_SIZES_OF_DROPS)
    expected = _expect_full(
        tuple(sorted(full.items())), top_k=drops.top_k, num_experts=drops.num_experts
    )
    others, weight = drops.kinds.list_others()
    if not len(others):
        return expected
    found = _expect_kinds(
        others,
        np.full(len(others), weight),
        top_k=drops.top_k,
        num_experts=drops.num_experts,
    )
    return ExpectedDrops(
        expected.num_assignments + found.num_assignments,
        expected.by_position + found.by_position,
        expected.by_probability + found.by_probability,
    )


@lru_cache(maxsize=256)
def _expect_full(
    sizes: tuple[tuple[int, int], ...], *, top_k: int, num_experts: int
) -> ExpectedDrops:
    """Return the drops of batches of top-k decisions: pairs of tokens and a number of batches."""
    decisions = [describe_full_batch(size, top_k=top_k) for size, _ in sizes]
    return _expect_kinds(
        np.array(decisions, dtype=np.int64).reshape(-1, NUM_DECILES, top_k + 1),
        np.array([number for _, number in sizes], dtype=np.float64),
        top_k=top_k,
        num_experts=num_experts,
    )


def _expect_kinds(
    decisions: NDArray[np.int64], weights: NDArray[np.float64], *, top_k: int, num_experts: int
) -> ExpectedDrops:
    """Return the drops of batches, each taken as often as its weight says.

    Args:
        decisions: By decile and size. # (num_batches, 10, num_sizes)
        weights: # (num_batches,)
        top_k: Experts of a full decision.
        num_experts: Experts of the layer.
    """
    by_place = expect_dropped(decisions, top_k=top_k, num_experts=num_experts)
    number = (decisions * np.arange(decisions.shape[2])).sum(axis=2)  # (num_batches, 10)
    share = number / np.maximum(number.sum(axis=1, keepdims=True), 1)
    spread = by_place.sum(axis=2, keepdims=True) * share[:, None]
    return ExpectedDrops(
        weights @ number,
        np.tensordot(weights, by_place, axes=1),
        np.tensordot(weights, spread, axes=1),
    )


def expect_batch_violation(drops: DropCounter) -> float | None:
    """Return the mean violation of a random router over batches in which an expert ran."""
    if drops.top_k is None:
        return None
    full = _thin(drops.kinds.full, _MOST_SIZES_OF_LOADS)
    kinds: list[tuple[Sizes, float]] = [
        (((drops.top_k, size),), float(number)) for size, number in full.items()
    ]
    kinds += _choose_kinds(drops)
    found = [
        (violation * number, number)
        for sizes, number in kinds
        if (violation := expect_evenness(drops.num_experts, sizes).max_violation) is not None
    ]
    return divide(sum(product for product, _ in found), sum(number for _, number in found))


def _choose_kinds(drops: DropCounter) -> list[tuple[Sizes, float]]:
    """Return a few of the batches with shorter decisions, and how many batches each stands for.

    The largest load over the mean grows with the relative deviation of an expert's load. In this
    order, the middle one of some neighbours stands for them.
    """
    others, weight = drops.kinds.list_others()
    decisions = others.sum(axis=1)  # (num_batches, num_sizes)
    size = np.arange(decisions.shape[1])
    mean = decisions @ size / drops.num_experts
    variance = decisions @ (size / drops.num_experts * (1 - size / drops.num_experts))
    (ran,) = np.nonzero(mean)
    order = ran[np.argsort(np.sqrt(variance[ran]) / mean[ran], kind="stable")]
    parts = np.array_split(order, min(len(order), _MOST_OTHERS_OF_LOADS)) if len(order) else []
    return [(make_sizes(decisions[part[len(part) // 2]]), weight * len(part)) for part in parts]


def _thin(sizes: Mapping[int, int], most: int) -> dict[int, int]:
    """Return no more than a number of sizes, each for its neighbours; counts keep their sum."""
    if len(sizes) <= most:
        return dict(sizes)
    thinned: dict[int, int] = {}
    for part in np.array_split(np.array(sorted(sizes)), most):
        numbers = np.array([sizes[size] for size in part.tolist()])
        typical = round(float((part * numbers).sum() / numbers.sum()))
        thinned[typical] = thinned.get(typical, 0) + int(numbers.sum())
    return thinned


def divide(number: float, by: float) -> float | None:
    """Return a ratio; None where its denominator is 0."""
    return float(number / by) if by else None


def _divide_all(numbers: NDArray[Any], by: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(divide(one, other) for one, other in zip(numbers, by, strict=True))
