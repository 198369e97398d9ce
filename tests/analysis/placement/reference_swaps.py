"""Placement by co-activation in plain Python: every swap is tried anew, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tests.analysis.placement import reference

Rating = Callable[[int, int], float]


def place_by_coactivation(
    load: Sequence[float],
    rating: Sequence[Sequence[float]],
    *,
    num_slots: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
) -> list[list[int]]:
    """Return the experts of each GPU.

    Args:
        load: Of each expert.
        rating: How much two experts belong together.
        num_slots: Experts and replicas.
        num_groups: As EPLB takes it.
        num_nodes: As EPLB takes it.
        num_gpus: As EPLB takes it.
    """
    slots = reference.place_by_load(
        load, num_slots=num_slots, num_groups=num_groups, num_nodes=num_nodes, num_gpus=num_gpus
    )
    count = [slots.count(expert) for expert in range(len(load))]
    shares = [load[expert] / count[expert] for expert in slots]

    def rate(first: int, second: int) -> float:
        mine, other = slots[first], slots[second]
        return rating[mine][other] / (count[mine] * count[other])

    def rate_apart(first: int, second: int) -> float:
        return -1.0 if slots[first] == slots[second] else rate(first, second)

    total = sum(shares)
    size = num_slots // num_nodes
    nodes = [list(range(start, start + size)) for start in range(0, num_slots, size)]
    if num_nodes > 1:
        nodes = swap(nodes, shares, rate, limit=1.05 * total / num_nodes)
    gpus: list[list[int]] = []
    for node in nodes:
        node.sort()
        packs = reference.pack_evenly([shares[slot] for slot in node], num_gpus // num_nodes)
        parts = [[node[item] for item in pack] for pack in packs]
        gpus += swap(parts, shares, rate_apart, limit=1.05 * total / num_gpus)
    return [sorted(slots[slot] for slot in gpu) for gpu in gpus]


def swap(
    parts: list[list[int]], load: Sequence[float], rate: Rating, *, limit: float
) -> list[list[int]]:
    """Return the parts after the best allowed swaps, until none gains anything."""
    while True:
        best, found = 1e-9, None
        for mine, other in itertools.combinations(range(len(parts)), 2):
            for first, second in itertools.product(parts[mine], parts[other]):
                new = [
                    [second, *(item for item in parts[mine] if item != first)],
                    [first, *(item for item in parts[other] if item != second)],
                ]
                old = [parts[mine], parts[other]]
                gain = sum_within(new, rate) - sum_within(old, rate)
                loads = [sum(load[item] for item in part) for part in (*new, *old)]
                is_allowed = all(
                    loads[i] <= max(limit, loads[i + 2]) + 1e-9 * limit for i in (0, 1)
                )
                if is_allowed and gain > best * (1 + 1e-9):
                    best, found = gain, (mine, other, new)
        if found is None:
            return parts
        mine, other, new = found
        parts = [*parts]
        parts[mine], parts[other] = new


def sum_within(parts: Sequence[Sequence[int]], rate: Rating) -> float:
    return sum(rate(i, j) for part in parts for i, j in itertools.combinations(part, 2))
