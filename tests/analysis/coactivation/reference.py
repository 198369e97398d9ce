"""Co-activation counted pair by pair in plain Python, and traces to count."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pyarrow as pa

from tests.analysis.random_traces import Decision, list_decisions


def select_layer(table: pa.Table, layer: int) -> list[Decision]:
    """Return the decisions of a layer with the experts that ran."""
    return [
        replace(one, experts=tuple(expert for expert in one.experts if expert >= 0))
        for one in list_decisions(table)
        if one.layer == layer
    ]


def count_pairs(decisions: Sequence[Decision]) -> Counter[tuple[int, int]]:
    """Return how many decisions choose both experts of each pair, the smaller id first."""
    return Counter(pair for one in decisions for pair in combinations(sorted(one.experts), 2))


def count_experts(decisions: Sequence[Decision]) -> Counter[int]:
    return Counter(expert for one in decisions for expert in one.experts)


def find_lift(decisions: Sequence[Decision], i: int, j: int) -> float | None:
    loads = count_experts(decisions)
    if not loads[i] or not loads[j]:
        return None
    return count_pairs(decisions)[i, j] * len(decisions) / (loads[i] * loads[j])


def find_deviation(decisions: Sequence[Decision], i: int, j: int) -> float:
    """Return the standard deviation of a lift's logarithm as the module on it defines it."""
    prompts = sorted({one.prompt_id for one in decisions})
    together, one_of, other_of, total = (Counter[str]() for _ in range(4))
    for one in decisions:
        together[one.prompt_id] += i in one.experts and j in one.experts
        one_of[one.prompt_id] += i in one.experts
        other_of[one.prompt_id] += j in one.experts
        total[one.prompt_id] += 1
    sums = [sum(each.values()) for each in (together, one_of, other_of, total)]
    changes = [
        together[prompt] / sums[0]
        - one_of[prompt] / sums[1]
        - other_of[prompt] / sums[2]
        + total[prompt] / sums[3]
        for prompt in prompts
    ]
    spread = len(prompts) / (len(prompts) - 1) * sum(change**2 for change in changes)
    independent = 1 / sums[0] - 1 / sums[1] - 1 / sums[2] + 1 / sums[3]
    effective = sums[0] ** 2 / sum(together[prompt] ** 2 for prompt in prompts)
    return math.sqrt(max(spread, independent, 0) + 1 / effective**2)
