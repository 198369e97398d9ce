"""Pairs of traces of the same tokens, and their agreement computed decision by decision."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from moetool.analysis.comparison.measure import COLUMNS, compare_traces
from moetool.analysis.comparison.result import Comparison
from moetool.analysis.statistics.students_t import find_quantile
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import (
    Decision,
    Router,
    list_decisions,
    make_random_trace,
    open_rows,
)

ROUTER = Router()
LENGTHS = (5, 3, 7, 4, 9, 1, 6)
Values = Mapping[str, tuple[float, float | None, float | None]]


def make_pair(
    *,
    share: float = 0.4,
    lengths: tuple[int, ...] = LENGTHS,
    router: Router = ROUTER,
    seed: int = 0,
    num_prompt_tokens: int | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Return a trace, and one in which a share of the decisions was drawn again."""
    first, drawn = (
        make_random_trace(lengths, router=router, seed=one, num_prompt_tokens=num_prompt_tokens)
        for one in (seed, seed + 1_000)
    )
    rng = np.random.default_rng(seed)
    is_new = np.repeat(rng.random(first.num_rows // router.top_k) < share, router.top_k)
    for name in ("expert", "weight"):
        column = np.where(is_new, drawn.column(name), first.column(name))
        index = first.column_names.index(name)
        kind = first.schema.field(name).type
        drawn = drawn.set_column(index, name, pa.array(column).cast(kind))
    second = first
    for name in ("expert", "weight"):
        second = second.set_column(second.column_names.index(name), name, drawn.column(name))
    return first, second


def compare_rows(
    first: pa.Table, second: pa.Table, *, router: Router = ROUTER, **options: Any
) -> Comparison:
    """Return the comparison of two tables of one router."""
    by = options.get("by", "domain")
    readers = (
        DecisionReader(open_rows(table, router=router), by=column, columns=COLUMNS)
        for table, column in ((first, by), (second, "domain"))
    )
    return compare_traces(*readers, **options)


def refer(
    first: pa.Table, second: pa.Table, key: Callable[[Decision], object]
) -> dict[object, Values]:
    """Return the measures, with their limits, of the decisions with each key."""
    values: dict[object, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for one, other in zip(list_decisions(first), list_decisions(second), strict=True):
        for name, value in _measure(one, other).items():
            values[key(one)][name][one.prompt_id].append(value)
    return {
        found: {name: find_ratio(by_prompt.values()) for name, by_prompt in measures.items()}
        for found, measures in values.items()
    }


def _measure(one: Decision, other: Decision) -> dict[str, float]:
    mine, theirs = set(one.experts), set(other.experts)
    shared = len(mine & theirs)
    measures = {
        "overlap": shared / max(len(mine), len(theirs)),
        "jaccard": shared / len(mine | theirs),
        "saturation": shared / len(theirs),
        "changed_decisions": float(mine != theirs),
        "first_choice_flips": float(one.experts[0] != other.experts[0]),
    }
    if mine == theirs:
        weights = [dict(zip(each.experts, each.weights, strict=True)) for each in (one, other)]
        moved = sum(abs(weights[0][expert] - weights[1][expert]) for expert in mine)
        measures["weight_change"] = moved / sum(sum(each.values()) for each in weights)
    return measures


def find_ratio(
    by_prompt: Iterable[list[float]],
) -> tuple[float, float | None, float | None]:
    """Return the mean over all values, and its limits over prompts."""
    prompts = list(by_prompt)
    values = [value for prompt in prompts for value in prompt]
    number, mean = len(values), sum(values) / len(values)
    if len(prompts) < 2:
        return mean, None, None
    between = sum((sum(prompt) - mean * len(prompt)) ** 2 for prompt in prompts)
    variance = len(prompts) / (len(prompts) - 1) * between / number**2
    shrunk = (sum(values) + 0.5) / (number + 1)
    reach = find_quantile(len(prompts) - 1) * math.sqrt(
        max(variance, shrunk * (1 - shrunk) / number)
    )
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)
