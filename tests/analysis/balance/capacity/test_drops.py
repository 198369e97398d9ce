"""Dropped assignments against a router that serves tokens one by one, and against random routers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moetool.analysis.balance.capacity.batches import BatchCutter
from moetool.analysis.balance.capacity.drops import (
    FACTORS,
    POLICIES,
    DropCounter,
    order_floats,
    sort_stably,
)
from moetool.analysis.balance.capacity.kinds import NUM_DECILES


def serve_batch(
    experts: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    *,
    factor: float,
    policy: str,
    num_experts: int,
    top_k: int,
) -> list[int]:
    """Return the dropped assignments of one batch by decile, serving one after the other."""
    size = len(experts)
    room = {
        expert: math.ceil(round(factor * size * top_k / num_experts, 9))
        for expert in range(num_experts)
    }
    asking = [
        (token, expert, weights[token][slot])
        for token, mine in enumerate(experts)
        for slot, expert in enumerate(mine)
        if expert >= 0
    ]
    if policy == "probability":
        asking.sort(key=lambda each: -each[2])
    dropped = [0] * NUM_DECILES
    for token, expert, _ in asking:
        if room[expert]:
            room[expert] -= 1
        else:
            dropped[token * NUM_DECILES // size] += 1
    return dropped


def draw_decisions(
    num_tokens: int, *, num_experts: int, top_k: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    popular = rng.exponential(size=num_experts)
    scores = np.log(popular) + rng.gumbel(size=(num_tokens, num_experts))
    experts = np.argsort(-scores, axis=1)[:, :top_k]
    experts[rng.random(experts.shape) < 0.1] = -1
    # Few values, so that many weights are equal.
    weights = rng.choice([0.1, 0.25, 0.5], size=experts.shape).astype(np.float32)
    return experts, weights


@pytest.mark.parametrize("tokens_per_batch", [None, 16])
@pytest.mark.parametrize("part_size", [1000, 7])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 3)])
def test_drops_are_those_of_serving_one_after_the_other(
    tokens_per_batch: int | None, part_size: int, num_experts: int, top_k: int
) -> None:
    lengths = [5, 12, 1, 30, 22]
    num_tokens = sum(lengths)
    experts, weights = draw_decisions(num_tokens, num_experts=num_experts, top_k=top_k, seed=3)
    prompt = np.repeat(np.arange(len(lengths)), lengths)
    counter = DropCounter(num_experts=num_experts, top_k=top_k)
    cutter = BatchCutter(tokens_per_batch)
    for start in range(0, num_tokens, part_size):
        part = slice(start, start + part_size)
        counter.add(cutter.cut(prompt[part], (experts[part], weights[part])))
    counter.add(cutter.finish())
    ends = np.cumsum(lengths).tolist()
    if tokens_per_batch is not None:
        ends = [*range(tokens_per_batch, num_tokens, tokens_per_batch), num_tokens]
    batches = list(zip([0, *ends[:-1]], ends, strict=True))
    assert counter.num_batches == len(batches)
    for index, policy in enumerate(POLICIES):
        for number, factor in enumerate(FACTORS):
            expected = np.zeros(NUM_DECILES, dtype=int)
            for start, end in batches:
                expected += serve_batch(
                    experts[start:end].tolist(),
                    weights[start:end].tolist(),
                    factor=factor,
                    policy=policy,
                    num_experts=num_experts,
                    top_k=top_k,
                )
            assert counter.num_dropped[index, number].tolist() == expected.tolist()
    violations = []
    for start, end in batches:
        chosen = experts[start:end][experts[start:end] >= 0].tolist()
        if chosen:
            most = max(chosen.count(expert) for expert in range(num_experts))
            violations.append(most * num_experts / len(chosen) - 1)
    assert counter.num_violations == len(violations)
    assert counter.sum_of_violations == pytest.approx(sum(violations))


def test_who_comes_first_changes_who_is_dropped_but_not_how_many() -> None:
    experts, weights = draw_decisions(200, num_experts=8, top_k=2, seed=0)
    counter = DropCounter(num_experts=8, top_k=2)
    counter.add(BatchCutter(50).cut(np.zeros(200, dtype=np.int64), (experts, weights)))
    position, probability = counter.num_dropped
    assert position.sum(axis=1).tolist() == probability.sum(axis=1).tolist()
    assert position[0].sum() > 0
    assert position.tolist() != probability.tolist()
    # Those that come first are never dropped before an expert is full.
    assert position[:, 0].tolist() == [0] * len(FACTORS)


@pytest.mark.parametrize("top_k", [1, 4])
def test_capacity_for_all_drops_nothing(top_k: int) -> None:
    experts = np.tile(np.arange(4), (40, 1))[:, :top_k]
    counter = DropCounter(num_experts=top_k, top_k=top_k)
    counter.add(BatchCutter(8).cut(np.zeros(40, dtype=np.int64), (experts,)))
    assert not counter.num_dropped.any()
    assert not counter.has_weights


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_sorting_is_stable(values: list[int]) -> None:
    key = np.array(values, dtype=np.int64)
    assert sort_stably(key).tolist() == np.argsort(key, kind="stable").tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50))
def test_floats_keep_their_order_as_whole_numbers(values: list[float]) -> None:
    numbers = np.array(values, dtype=np.float32) + np.float32(0)  # Makes -0.0 equal to 0.0.
    ordered = order_floats(numbers)
    assert (
        np.argsort(ordered, kind="stable").tolist() == np.argsort(numbers, kind="stable").tolist()
    )
