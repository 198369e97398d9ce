"""Shares of what experts of limited size drop, next to those of a random router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.drops import (
    FACTORS,
    NUM_DECILES,
    POLICIES,
    DropCounter,
    expect_dropped,
    find_decile,
)
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.random_router import expect_evenness
from moetool.analysis.balance.result import (
    CapacityShare,
    DroppedBaseline,
    ExpertChoice,
    LayerShare,
)

# Distinct sizes of batches for which an expectation is computed; more are represented by as many.
_MOST_SIZES_OF_LOADS = 48
_MOST_SIZES_OF_DROPS = 512


@dataclass(frozen=True)
class ExpectedDrops:
    """The assignments that a uniform random router would drop of some batches.

    Attributes:
        num_assignments: # (10,), by position decile, like the following.
        by_position: Dropped if tokens come in the order of the batch. # (num_factors, 10)
        by_probability: Dropped if they come in any other order. # (num_factors, 10)
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
    """Return the mean number of tokens of a batch."""
    num_batches = sum(drops.num_batches for drops in layers)
    num_tokens = sum(size * number for drops in layers for size, number in drops.sizes.items())
    return divide(num_tokens, num_batches)


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
    sizes = _thin(drops.sizes, _MOST_SIZES_OF_DROPS)
    return _expect_drops_of(
        tuple(sorted(sizes.items())), top_k=drops.top_k, num_experts=drops.num_experts
    )


@lru_cache(maxsize=256)
def _expect_drops_of(
    sizes: tuple[tuple[int, int], ...], *, top_k: int, num_experts: int
) -> ExpectedDrops:
    total = np.zeros(NUM_DECILES)
    by_position, by_probability = np.zeros((2, len(FACTORS), NUM_DECILES))
    for size, number in sizes:
        decile = find_decile(np.arange(size), np.full(size, size))
        share = np.bincount(decile, minlength=NUM_DECILES) / size
        total += number * size * top_k * share
        for index, factor in enumerate(FACTORS):
            dropped, by_decile = expect_dropped(factor, size, top_k=top_k, num_experts=num_experts)
            by_position[index] += number * by_decile
            by_probability[index] += number * dropped * share
    return ExpectedDrops(total, by_position, by_probability)


def expect_batch_violation(drops: DropCounter) -> float | None:
    """Return the mean violation of a random router over batches of these sizes."""
    sizes = _thin(drops.sizes, _MOST_SIZES_OF_LOADS)
    total = 0.0
    for size, number in sizes.items():
        expected = expect_evenness(drops.num_experts, ((drops.top_k, size),))
        total += number * (expected.max_violation or 0.0)
    return divide(total, sum(sizes.values()))


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
