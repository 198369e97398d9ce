"""Placement by load alone, as DeepSeek's expert-parallel load balancer (EPLB) does it.

Written from the description in https://github.com/deepseek-ai/EPLB. Experts that carry the most
load get replicas; slots are then packed so that GPUs have equal numbers of them and nearly equal
load. Where the number of nodes divides that of the router's groups, the experts of a group stay on
one node, with their replicas.

Equal loads are taken in the order of expert ids. Other implementations leave that order open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster


def place_by_load(load: NDArray[np.float64], cluster: Cluster) -> NDArray[np.int64]:
    """Return the expert of each slot of a layer; slots of a GPU follow each other.

    Args:
        load: Load of each expert, in any unit. # (num_experts,)
        cluster: GPUs and nodes to place the experts on; it fits the layer.

    Returns:
        # (num_slots,)
    """
    num_groups, num_nodes = cluster.num_groups, cluster.num_nodes
    if not cluster.keeps_groups_together:
        num_groups = num_nodes = 1
    num_slots = cluster.count_slots(len(load))
    groups = np.arange(len(load)).reshape(num_groups, -1)
    slots = []
    for groups_of_node in pack_evenly(load[groups].sum(axis=1), num_nodes):
        experts = groups[groups_of_node].ravel()
        copies = replicate(load[experts], num_slots // num_nodes)
        shared_load = (load[experts] / np.bincount(copies))[copies]
        packs = pack_evenly(shared_load, cluster.num_gpus // num_nodes)
        slots.append(experts[copies[packs.ravel()]])
    return np.concatenate(slots)


def replicate(load: NDArray[np.float64], num_slots: int) -> NDArray[np.int64]:
    """Return the expert of each slot: every expert once, then replicas of the busiest.

    Each further slot goes to the expert whose replicas carry the most load each.

    Returns:
        # (num_slots,)
    """
    num_experts = len(load)
    count = np.ones(num_experts, dtype=np.int64)
    replicas = np.empty(num_slots - num_experts, dtype=np.int64)
    for slot in range(len(replicas)):
        replicas[slot] = busiest = (load / count).argmax()
        count[busiest] += 1
    return np.concatenate([np.arange(num_experts), replicas])


def pack_evenly(load: NDArray[np.float64], num_packs: int) -> NDArray[np.int64]:
    """Return the items of each pack: equal numbers of them, and nearly equal load.

    The heaviest item that is left goes to the lightest pack that has room. Where packs hold one
    item each, every item keeps its place.

    Args:
        load: Of each item; their number is a multiple of `num_packs`. # (num_items,)
        num_packs: Number of packs.

    Returns:
        Indices of items, in the order in which they were packed. # (num_packs, num_items / num_packs)
    """
    size = len(load) // num_packs
    if size == 1:
        return np.arange(num_packs)[:, None]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    totals = [0.0] * num_packs
    open_packs = list(range(num_packs))
    for item in np.argsort(-load, kind="stable").tolist():
        pack = min(open_packs, key=totals.__getitem__)
        packs[pack].append(item)
        totals[pack] += float(load[item])
        if len(packs[pack]) == size:
            open_packs.remove(pack)
    return np.array(packs, dtype=np.int64)
