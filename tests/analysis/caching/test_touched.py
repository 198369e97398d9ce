"""Distinct experts by batch size, and budgets."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from moetool.analysis.caching.budgets import parse_budgets
from moetool.errors import UsageError
from tests.analysis.caching.test_policies import LENGTHS, SKEWED, simulate
from tests.analysis.random_traces import Decision, Router, list_decisions, make_random_trace
from tests.analysis.short_decisions import shorten_decisions


@pytest.mark.parametrize("share_short", [0.0, 0.5])
@pytest.mark.parametrize("router", [SKEWED, Router(num_experts=70, top_k=8)])
def test_distinct_experts_are_those_of_every_batch(router: Router, share_short: float) -> None:
    table = shorten_decisions(make_random_trace(LENGTHS, router=router), share=share_short)
    result = simulate(table, "2", router=router)
    decisions = [decision for decision in list_decisions(table) if decision.layer == 1]
    of_one = [
        [ran(d) for d in decisions if d.prompt_id == f"p{index}"] for index in range(len(LENGTHS))
    ]
    of_several = [
        [ran(d) for d in decisions if d.position == position] for position in range(max(LENGTHS))
    ]
    for name, groups in (("one text", of_one), ("several texts", of_several)):
        for size in (1, 2, 4, 8):
            batches = [
                group[start : start + size]
                for group in groups
                for start in range(0, len(group) - size + 1, size)
            ]
            numbers = [len(set().union(*batch)) for batch in batches]
            found = [
                item
                for item in result.layers[1].touched
                if (item.of, item.batch_size) == (name, size)
            ]
            assert [item.num_batches for item in found] == ([len(numbers)] if numbers else [])
            for item in found:
                assert item.experts == pytest.approx(sum(numbers) / len(numbers))
                total = router.num_experts
                at_random = [
                    total * (1 - prod(1 - len(chosen) / total for chosen in batch))
                    for batch in batches
                ]
                assert item.baseline.experts == pytest.approx(sum(at_random) / len(batches))


def ran(decision: Decision) -> set[int]:
    return {expert for expert in decision.experts if expert >= 0}


def test_a_random_router_of_short_decisions_lands_on_the_baseline() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=2)
    table = shorten_decisions(make_random_trace((64,) * 40, router=router), share=0.6)
    result = simulate(table, "2", router=router)
    for item in result.touched:
        # Distinct experts of a batch vary by less than the square root of their number.
        error = np.sqrt(item.experts / item.num_batches)
        assert abs(item.experts - item.baseline.experts) < 4 * error
        assert abs(item.experts - item.by_load) < 4 * error
    single = [item for item in result.touched if item.batch_size == 1]
    for item in single:
        figures = (item.experts, item.baseline.experts, item.by_load)
        assert figures == pytest.approx((1.4, 1.4, 1.4))
    assert any(note.endswith("choices ran no expert.") for note in result.notes)


def test_independent_tokens_need_as_many_experts_as_expected() -> None:
    table = make_random_trace((64,) * 40, router=SKEWED)
    result = simulate(table, "2", router=SKEWED)
    for item in result.touched:
        # Distinct experts of a batch vary by less than the square root of their number.
        error = np.sqrt(item.experts / item.num_batches)
        assert abs(item.experts - item.by_load) < 5 * error
        if item.batch_size == 4:
            assert item.baseline.experts == pytest.approx(12 * (1 - (1 - 3 / 12) ** 4))
            assert item.baseline.experts > item.by_load + 1


def test_batches_are_counted_in_the_layer_that_has_the_fewest() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    result = simulate(table, "2", router=SKEWED)
    for item in result.touched:
        mine = [
            each.num_batches
            for layer in result.layers
            for each in layer.touched
            if (each.of, each.batch_size) == (item.of, item.batch_size)
        ]
        assert (item.fewest_batches, item.num_batches) == (min(mine), sum(mine))
        assert item.has_enough_batches == (min(mine) >= 5)
    assert len({item.has_enough_batches for item in result.touched}) == 2


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
