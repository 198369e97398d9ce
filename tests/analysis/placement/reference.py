"""Placements and their scores in plain Python: lists, dicts and loops."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def place_by_load(
    load: Sequence[float], *, num_slots: int, num_groups: int, num_nodes: int, num_gpus: int
) -> list[int]:
    """Return EPLB's expert of each slot, from its published description."""
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    size = len(load) // num_groups
    groups = [list(range(start, start + size)) for start in range(0, len(load), size)]
    group_loads = [sum(load[expert] for expert in group) for group in groups]
    slots: list[int] = []
    for pack in pack_evenly(group_loads, num_nodes):
        experts = [expert for index in pack for expert in groups[index]]
        copies = list(experts)
        while len(copies) < num_slots // num_nodes:
            copies.append(max(experts, key=lambda expert: load[expert] / copies.count(expert)))
        shares = [load[expert] / copies.count(expert) for expert in copies]
        for items in pack_evenly(shares, num_gpus // num_nodes):
            slots += [copies[item] for item in items]
    return slots


def pack_evenly(load: Sequence[float], num_packs: int) -> list[list[int]]:
    size = len(load) // num_packs
    if size == 1:
        return [[item] for item in range(num_packs)]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    for item in sorted(range(len(load)), key=lambda item: (-load[item], item)):
        room = [pack for pack in packs if len(pack) < size]
        min(room, key=lambda pack: sum(load[other] for other in pack)).append(item)
    return packs


def find_gpus(slots: Sequence[int], *, num_parts: int) -> dict[int, list[int]]:
    """Return the parts that hold each expert, one for each of its slots."""
    size = len(slots) // num_parts
    gpus: dict[int, list[int]] = {}
    for slot, expert in enumerate(slots):
        gpus.setdefault(expert, []).append(slot // size)
    return gpus


def count_reached(decision: Iterable[int], slots: Sequence[int], *, num_parts: int) -> float:
    """Return the parts that a decision reaches, averaged over every choice of replicas."""
    gpus = find_gpus(slots, num_parts=num_parts)
    choices = list(itertools.product(*(gpus[expert] for expert in decision)))
    return sum(len(set(choice)) for choice in choices) / len(choices)


def measure_imbalance(
    decisions: Iterable[Iterable[int]], slots: Sequence[int], *, num_parts: int
) -> float:
    """Return the busiest part's load over the mean of all."""
    gpus = find_gpus(slots, num_parts=num_parts)
    load = [0.0] * num_parts
    for decision in decisions:
        for expert in decision:
            for gpu in gpus[expert]:
                load[gpu] += 1 / len(gpus[expert])
    return max(load) * num_parts / sum(load)


def split_batches(decisions: Sequence[Sequence[int]], size: int) -> list[Sequence[Sequence[int]]]:
    """Return the complete batches of consecutive decisions."""
    number = len(decisions) // size
    return [decisions[index * size : (index + 1) * size] for index in range(number)]


def count_pairs(decisions: Iterable[Sequence[int]], num_experts: int) -> list[list[int]]:
    pairs = [[0] * num_experts for _ in range(num_experts)]
    for decision in decisions:
        for first, second in itertools.permutations(decision, 2):
            pairs[first][second] += 1
    return pairs


def count_covariance(
    decisions: Sequence[Sequence[int]], num_experts: int, *, tokens_per_batch: int
) -> list[list[float]]:
    """Return the covariance of two experts' loads over complete batches."""
    batches = split_batches(decisions, tokens_per_batch)
    loads = [
        [sum(decision.count(expert) for decision in batch) for expert in range(num_experts)]
        for batch in batches
    ]
    mean = [sum(load[expert] for load in loads) / len(loads) for expert in range(num_experts)]
    return [
        [
            sum((load[i] - mean[i]) * (load[j] - mean[j]) for load in loads) / len(loads)
            for j in range(num_experts)
        ]
        for i in range(num_experts)
    ]
