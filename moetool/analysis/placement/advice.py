"""Settings of vLLM that a trace speaks for; no release of vLLM reads a placement from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.eplb import place_by_load
from moetool.analysis.placement.result import VllmAdvice
from moetool.analysis.placement.scoring import LayerScorer

LINEAR, ROUND_ROBIN = "linear", "round_robin"

# Numbers of redundant experts to try, in steps of the number of GPUs.
_STEPS = (0, 1, 2, 4)
_CLOSE_ENOUGH = 1.02


def add_candidates(
    placements: Mapping[str, NDArray[np.int64]], load: NDArray[np.int64], cluster: Cluster
) -> dict[str, NDArray[np.int64]]:
    """Return a layer's placements together with those that vLLM can be set to.

    Args:
        placements: Expert of each slot, by name.
        load: Assignments of each expert. # (num_experts,)
        cluster: GPUs and nodes.
    """
    num_experts = len(load)
    found = dict(placements)
    # vLLM's defaults need equal numbers of experts, too; its own slots come without replicas.
    if num_experts % cluster.num_gpus == 0:
        expert = np.arange(num_experts)
        found[LINEAR] = expert
        found[ROUND_ROBIN] = expert[np.lexsort((expert, expert % cluster.num_gpus))]
    for redundant in _list_redundant(num_experts, cluster):
        tried = replace(cluster, num_redundant_experts=redundant)
        found[str(redundant)] = place_by_load(load.astype(np.float64), tried)
    return found


def choose_settings(scorers: Collection[LayerScorer], cluster: Cluster) -> VllmAdvice | None:
    """Return the settings with the lowest batch imbalance on the held-out prompts.

    None if there was no complete batch, or layers have different numbers of experts.
    """
    by_layer = [scorer.scores() for scorer in scorers]
    shared = set.intersection(*(set(scores) for scores in by_layer)) if by_layer else set()
    means: dict[str, float] = {}
    for name in shared:
        known = [scores[name].batch_imbalance for scores in by_layer]
        means[name] = sum(value for value in known if value is not None) / len(known)
        if None in known:
            return None
    numbers = sorted((name for name in means if name.isdecimal()), key=int)
    if not numbers:
        return None
    lowest = min(means[name] for name in numbers)
    best = next(name for name in numbers if means[name] <= _CLOSE_ENOUGH * lowest)
    strategies = {name: means[name] for name in (LINEAR, ROUND_ROBIN) if name in means}
    return VllmAdvice(
        num_redundant_experts=int(best),
        # vLLM refuses round_robin for routers without groups, and with EPLB.
        expert_placement_strategy=min(strategies, key=strategies.__getitem__)
        if strategies and cluster.num_groups > 1
        else LINEAR,
        imbalance_by_redundant={name: means[name] for name in numbers},
        imbalance_by_strategy=strategies,
    )


def _list_redundant(num_experts: int, cluster: Cluster) -> list[int]:
    least = -num_experts % cluster.num_gpus
    return [least + step * cluster.num_gpus for step in _STEPS]
