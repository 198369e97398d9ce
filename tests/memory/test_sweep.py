"""Sweeps: every combination of sizes once, and nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.errors import UsageError
from moetool.memory.scenario import Scenario, Task
from moetool.memory.sweep import list_scenarios
from moetool.quantizing.kinds import Quantization

SIZES = st.lists(st.integers(1, 9), max_size=4)


def test_the_last_list_changes_fastest() -> None:
    common = Scenario(dtype="float32", quantization=Quantization.NF4)
    scenarios = list_scenarios(common, batch_sizes=(8, 1), prompt_tokens=(64,), new_tokens=(2, 3))
    sizes = [(8, 64, 2), (8, 64, 3), (1, 64, 2), (1, 64, 3)]
    assert scenarios == [
        replace(common, batch_size=batch, num_prompt_tokens=prompt, num_new_tokens=new)
        for batch, prompt, new in sizes
    ]


def test_without_lists_there_is_the_scenario_itself() -> None:
    common = Scenario(batch_size=3, num_prompt_tokens=5, num_new_tokens=7)
    assert list_scenarios(common) == [common]


@given(SIZES, SIZES, SIZES)
def test_every_combination_is_there_once(
    batch_sizes: list[int], prompt_tokens: list[int], new_tokens: list[int]
) -> None:
    found = list_scenarios(
        Scenario(), batch_sizes=batch_sizes, prompt_tokens=prompt_tokens, new_tokens=new_tokens
    )
    combinations = {
        (batch, prompt, new)
        for batch in batch_sizes or [1]
        for prompt in prompt_tokens or [2048]
        for new in new_tokens or [256]
    }
    sizes = [
        (scenario.batch_size, scenario.num_prompt_tokens, scenario.num_new_tokens)
        for scenario in found
    ]
    assert set(sizes) == combinations
    assert len(sizes) == len(combinations)


def test_a_thousand_scenarios_are_possible_and_no_more() -> None:
    assert (
        len(list_scenarios(Scenario(), batch_sizes=range(1, 11), new_tokens=range(1, 101))) == 1000
    )
    with pytest.raises(UsageError, match=r"1,001 scenarios; at most 1,000"):
        list_scenarios(Scenario(), batch_sizes=range(1, 1002))


def test_too_many_scenarios_to_list_are_refused_at_once() -> None:
    sizes = range(1, 10_000)
    with pytest.raises(UsageError, match=r"999,700,029,999 scenarios"):
        list_scenarios(Scenario(), batch_sizes=sizes, prompt_tokens=sizes, new_tokens=sizes)


def test_a_forward_pass_makes_no_new_tokens() -> None:
    common = Scenario(task=Task.FORWARD, num_new_tokens=0)
    assert list_scenarios(common, new_tokens=(0,)) == [common]
    with pytest.raises(UsageError, match="no new tokens"):
        list_scenarios(common, new_tokens=(0, 1))
    traced = list_scenarios(replace(common, task=Task.TRACE), new_tokens=(0, 1))
    assert [scenario.num_new_tokens for scenario in traced] == [0, 1]


def test_a_size_that_is_not_possible_is_refused() -> None:
    with pytest.raises(UsageError, match="batch size can't be 0"):
        list_scenarios(Scenario(), batch_sizes=(1, 0))
