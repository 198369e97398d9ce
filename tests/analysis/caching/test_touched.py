"""Distinct experts by batch size, and budgets."""

from __future__ import annotations

import numpy as np
import pytest

from moetool.analysis.caching.budgets import parse_budgets
from moetool.errors import UsageError
from tests.analysis.caching.test_policies import LENGTHS, SKEWED, simulate
from tests.analysis.random_traces import Router, list_decisions, make_random_trace


@pytest.mark.parametrize("router", [SKEWED, Router(num_experts=70, top_k=8)])
def test_distinct_experts_are_those_of_every_batch(router: Router) -> None:
    table = make_random_trace(LENGTHS, router=router)
    result = simulate(table, "2", router=router)
    decisions = [decision for decision in list_decisions(table) if decision.layer == 1]
    of_one = [
        [d.experts for d in decisions if d.prompt_id == f"p{index}"]
        for index in range(len(LENGTHS))
    ]
    of_several = [
        [d.experts for d in decisions if d.position == position] for position in range(max(LENGTHS))
    ]
    for name, groups in (("one text", of_one), ("several texts", of_several)):
        for size in (1, 2, 4, 8):
            numbers = [
                len(set().union(*group[start : start + size]))
                for group in groups
                for start in range(0, len(group) - size + 1, size)
            ]
            found = [
                item
                for item in result.layers[1].touched
                if (item.of, item.batch_size) == (name, size)
            ]
            assert [item.num_batches for item in found] == ([len(numbers)] if numbers else [])
            for item in found:
                assert item.experts == pytest.approx(sum(numbers) / len(numbers))


def test_independent_tokens_need_as_many_experts_as_expected() -> None:
    table = make_random_trace((64,) * 40, router=SKEWED)
    result = simulate(table, "2", router=SKEWED)
    for item in result.touched:
        # Distinct experts of a batch vary by less than the square root of their number.
        error = np.sqrt(item.experts / item.num_batches)
        assert abs(item.experts - item.by_load) < 5 * error
        if item.batch_size == 4:
            assert item.random == pytest.approx(12 * (1 - (1 - 3 / 12) ** 4))
            assert item.random > item.by_load + 1


def test_budgets_are_experts_shares_or_bytes() -> None:
    budgets = parse_budgets("8, 25%,1.5GiB,2kb,8")
    assert [budget.text for budget in budgets] == ["8", "25%", "1.5GiB", "2kb"]
    assert [budget.num_experts for budget in budgets] == [8, None, None, None]
    assert [budget.num_bytes for budget in budgets] == [None, None, 3 * 2**29, 2000]
    assert budgets[0].find_capacities([64, 4], None) == [8, 4]
    assert budgets[1].find_capacities([64, 6, 1], None) == [16, 2, 1]
    assert budgets[3].find_capacities([64, 64], [100, 150]) == [8, 8]
    with pytest.raises(UsageError, match="less than one expert of each layer, 2,500 bytes"):
        budgets[3].find_capacities([64, 64], [1000, 1500])
    with pytest.raises(UsageError, match="needs the size of an expert"):
        budgets[2].find_capacities([64], None)


@pytest.mark.parametrize("text", ["", "0", "1.5", "0%", "101%", "-3", "8,,9", "many", "3 parsecs"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a"):
        parse_budgets(text)
