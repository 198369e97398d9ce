"""Expected drops of a random router, against simulations and against every outcome."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from moetool.analysis.balance.capacity.batches import BatchCutter
from moetool.analysis.balance.capacity.drops import FACTORS, DropCounter
from moetool.analysis.balance.capacity.expected import expect_dropped
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.capacity.kinds import BatchKinds, describe_full_batch, find_decile
from moetool.analysis.balance.capacity.shares import (
    expect_batch_violation,
    make_capacity,
    make_expert_choice,
)
from moetool.analysis.statistics.random_choices import Ints, draw_choices
from tests.analysis.balance.capacity.test_drops import serve_batch


def describe(sizes: list[int], *, top_k: int) -> Ints:
    """Return the decisions of one batch by decile and size, counted one by one."""
    numbers = np.zeros((10, top_k + 1), dtype=np.int64)
    for place, size in enumerate(sizes):
        numbers[place * 10 // len(sizes), size] += 1
    return numbers


@pytest.mark.parametrize("sizes", [[2] * 5, [1, 2, 0, 2, 1], [2, 1, 1], [3, 1, 2, 3]])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_the_mean_over_all_outcomes_is_the_expected_one(sizes: list[int], factor: float) -> None:
    outcomes = list(product(*(combinations(range(4), size) for size in sizes)))
    dropped = np.array(
        [
            serve_batch(
                outcome,
                [[1.0] * size for size in sizes],
                factor=factor,
                policy="position",
                num_experts=4,
                top_k=3,
            )
            for outcome in outcomes
        ]
    )
    found = expect_dropped(describe(sizes, top_k=3)[None], top_k=3, num_experts=4, factors=[factor])
    assert found[0, 0] == pytest.approx(dropped.mean(axis=0), abs=1e-12)


@pytest.mark.parametrize("num_tokens", [1, 3, 10, 11, 57])
def test_full_batches_are_counted_as_one_by_one(num_tokens: int) -> None:
    expected = describe([2] * num_tokens, top_k=2)
    assert describe_full_batch(num_tokens, top_k=2).tolist() == expected.tolist()


def test_the_expected_share_is_the_published_one_for_large_batches() -> None:
    batch = describe_full_batch(64_000, top_k=4)[None]
    dropped = expect_dropped(batch, top_k=4, num_experts=64, factors=[1.0]).sum()
    total = 64_000 * 4
    assert dropped / total == pytest.approx(math.sqrt((64 - 4) / (2 * math.pi * total)), rel=0.01)


def draw_sizes(rng: np.random.Generator, num_tokens: int, *, top_k: int) -> Ints:
    """Return decisions of which late ones in the trace are shorter."""
    chance_short = np.linspace(0, 0.9, num_tokens)
    return top_k - (rng.random(num_tokens) < chance_short) * rng.integers(1, top_k + 1, num_tokens)


def test_a_random_router_of_short_decisions_lands_on_every_baseline() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, size=60)
    prompt = np.repeat(np.arange(60), lengths)
    sizes = draw_sizes(rng, len(prompt), top_k=3)
    counters = []
    for _ in range(30):
        experts = draw_choices(rng, 8, sizes)
        weights = rng.random(experts.shape).astype(np.float32)
        cutter = BatchCutter()
        counter = DropCounter(num_experts=8, top_k=3)
        counter.add(cutter.cut(prompt, (experts, weights)))
        counter.add(cutter.finish())
        counters.append(counter)
    runs = [make_capacity([counter], tokens_per_batch=None) for counter in counters]
    for index, share in enumerate(runs[0]):
        seen = np.array([run[index].dropped_share for run in runs], dtype=float)
        error = seen.std(ddof=1) / math.sqrt(len(runs))
        assert share.baseline.dropped_share is not None
        assert abs(seen.mean() - share.baseline.dropped_share) < 4 * error + 1e-4
        by_place = np.array([run[index].by_position for run in runs], dtype=float)
        errors = by_place.std(axis=0, ddof=1) / math.sqrt(len(runs))
        expected = np.array(share.baseline.by_position, dtype=float)
        # In order of probability, places follow from assignments up to one token of a batch.
        slack = 1e-3 if share.policy == "position" else 0.03 * expected + 1e-3
        assert (np.abs(by_place.mean(axis=0) - expected) < 4.5 * errors + slack).all()
    violations = np.array([each.sum_of_violations / each.num_violations for each in counters])
    expected_violation = expect_batch_violation(counters[0])
    assert expected_violation is not None
    # Sixteen of sixty batches stand for all, and the figure of each is known within 6 %.
    assert violations.mean() == pytest.approx(expected_violation, rel=0.06)


def test_expert_choice_at_random_leaves_as_many_however_few_experts_ran() -> None:
    """Experts take as many tokens as under top-k, whatever was recorded as chosen."""
    rng = np.random.default_rng(0)
    counter = ExpertChoiceCounter(num_experts=8, top_k=2)
    for _ in range(80):
        probabilities = rng.permuted(np.linspace(0.01, 0.9, 50 * 8)).reshape(50, 8)
        prompt = np.zeros(50, dtype=np.int64)
        counter.add(BatchCutter(50).cut(prompt, (probabilities.astype(np.float16),)))
    for choice in make_expert_choice([counter], tokens_per_batch=50):
        assert choice.share_without_expert is not None
        assert choice.baseline is not None
        error = math.sqrt(choice.baseline * (1 - choice.baseline) / counter.num_tokens)
        assert abs(choice.share_without_expert - choice.baseline) < 4 * error


def test_of_many_batches_a_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moetool.analysis.balance.capacity.kinds._MOST_KEPT", 40)
    rng = np.random.default_rng(0)
    kinds = BatchKinds(top_k=2)
    total = np.zeros(3)
    for _ in range(10):
        lengths = rng.integers(1, 20, size=90)
        lengths[:30] = 7
        sizes = rng.integers(0, 3, size=lengths.sum())
        sizes[: lengths[:30].sum()] = 2
        kinds.add(lengths, sizes)
        total += np.bincount(sizes, minlength=3)
    full, others = kinds.full, kinds.list_others()
    # Single tokens may have chosen two experts, too.
    assert full[7] >= 300
    assert sum(full.values()) + kinds.num_others == 900
    batches, weight = others
    assert 20 <= len(batches) <= 40
    assert weight * len(batches) == kinds.num_others
    stated = weight * batches.sum(axis=(0, 1))
    stated[2] += sum(size * number for size, number in full.items())
    assert stated == pytest.approx(total, rel=0.3)


def test_a_kept_batch_has_its_decisions_by_place_and_size() -> None:
    sizes = [2, 0, 1, 1, 2, 2, 0, 1, 2, 2, 2, 1, 0]
    kinds = BatchKinds(top_k=2)
    kinds.add(np.array([len(sizes)]), np.array(sizes))
    batches, weight = kinds.list_others()
    assert (batches.tolist(), weight) == ([describe(sizes, top_k=2).tolist()], 1)
    assert find_decile(np.array([0, 5]), np.array([10, 10])).tolist() == [0, 5]


def test_short_decisions_drop_less_than_full_ones() -> None:
    full = describe([2] * 40, top_k=2)
    short = describe([2, 1] * 20, top_k=2)
    many, few = expect_dropped(np.stack([full, short]), top_k=2, num_experts=8).sum(axis=2)
    assert len(many) == len(FACTORS)
    assert (few < many).all()
