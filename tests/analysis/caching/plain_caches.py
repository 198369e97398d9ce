"""Caches of experts, simulated step by step with Python's sets and lists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import pyarrow as pa

from moetool.analysis.statistics.halves import split_prompts
from tests.analysis.random_traces import Decision, list_decisions

POLICIES = ("static", "lru", "lfu", "belady")


@dataclass
class Step:
    """One pass of a layer: its uses of experts in order, the most recent last."""

    prompt_id: str
    phase: str
    uses: list[int] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def needed(self) -> set[int]:
        return set(self.uses)


def list_steps(
    table: pa.Table, *, layer: int, tokens_per_batch: int | None = None, decodes_all: bool = False
) -> list[Step]:
    """Return the steps of a layer, prompt by prompt."""
    steps: list[Step] = []
    before: Decision | None = None
    for decision in list_decisions(table):
        if decision.layer != layer:
            continue
        phase = "decode" if decodes_all else decision.phase
        is_new = (
            before is None
            or phase == "decode"
            or steps[-1].phase != phase
            or before.prompt_id != decision.prompt_id
            or steps[-1].num_tokens == tokens_per_batch
        )
        if is_new:
            steps.append(Step(decision.prompt_id, phase))
        steps[-1].uses += [expert for expert in reversed(decision.experts) if expert >= 0]
        steps[-1].num_tokens += 1
        before = decision
    return steps


def count_hits(
    steps: Sequence[Step], policy: str, *, capacity: int, static: dict[tuple[str, str], set[int]]
) -> dict[str, int]:
    """Return the hits of each phase.

    Args:
        static: The set that is kept for each prompt and phase.
    """
    hits: Counter[str] = Counter()
    for step, number in zip(
        steps, list_hits(steps, policy, capacity=capacity, static=static), strict=True
    ):
        hits[step.phase] += number
    return dict(hits)


def list_hits(
    steps: Sequence[Step], policy: str, *, capacity: int, static: dict[tuple[str, str], set[int]]
) -> list[int]:
    """Return the hits of each step."""
    hits = []
    kept: set[int] = set()
    last: dict[int, int] = {}
    frequency: Counter[int] = Counter()
    clock = 0
    for index, step in enumerate(steps):
        hits.append(
            len(step.needed & (static[step.prompt_id, step.phase] if policy == "static" else kept))
        )
        for expert in step.uses:
            clock += 1
            last[expert] = clock
            frequency[expert] += 1
        candidates = kept | step.needed
        priorities: dict[str, Callable[[int], tuple[int, ...]]] = {
            "lru": lambda expert: (last[expert],),
            "lfu": lambda expert: (frequency[expert], last[expert]),
            "belady": partial(_rank_need, steps, index),
            "static": lambda _: (0,),
        }
        kept = set(sorted(candidates, key=priorities[policy], reverse=True)[:capacity])
    return hits


def _rank_need(steps: Sequence[Step], index: int, expert: int) -> tuple[int, ...]:
    """Return a larger value for an expert that is needed sooner after a step."""
    later = (number for number in range(index + 1, len(steps)) if expert in steps[number].needed)
    return (-next(later, len(steps)),)


def find_static_sets(
    table: pa.Table, *, layer: int, capacity: int
) -> dict[tuple[str, str], set[int]]:
    """Return, for each prompt and phase, the experts that the other half chose most in it."""
    decisions = list_decisions(table)
    prompts = list(dict.fromkeys(decision.prompt_id for decision in decisions))
    half = dict(zip(prompts, split_prompts(prompts).astype(int).tolist(), strict=True))
    load: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)
    num_experts = 1 + max(max(decision.experts) for decision in decisions)
    for decision in decisions:
        if decision.layer == layer:
            ran = [expert for expert in decision.experts if expert >= 0]
            load[half[decision.prompt_id], decision.phase].update(ran)
    sets = {}
    for prompt in prompts:
        for phase in ("prefill", "decode"):
            counted = load[1 - half[prompt], phase]
            if not counted.total():
                counted = load[1 - half[prompt], "prefill"] + load[1 - half[prompt], "decode"]
            ranked = sorted(range(num_experts), key=partial(_rank_load, counted))
            sets[prompt, phase] = set(ranked[:capacity])
    return sets


def _rank_load(counted: Counter[int], expert: int) -> tuple[int, int]:
    return (-counted[expert], expert)


def find_most_hits(steps: Sequence[Step], *, capacity: int) -> int:
    """Return the most hits of any cache that starts empty and moves only what is needed."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for step in steps:
        after: dict[frozenset[int], int] = {}
        for kept, hits in best.items():
            total = hits + len(step.needed & kept)
            candidates = kept | step.needed
            size = min(capacity, len(candidates))
            for chosen in combinations(sorted(candidates), size):
                state = frozenset(chosen)
                after[state] = max(after.get(state, 0), total)
        best = after
    return max(best.values())
