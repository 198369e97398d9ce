"""Placement that keeps experts together that run for the same tokens, at a balanced load.

Experts of one token on one GPU save traffic. Experts that run for the same topic also become busy
together, and the variance of a GPU's load is the sum of the covariances of its experts. So pairs
are rated by how often one token chooses both, minus how far their loads vary together over batches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.eplb import pack_evenly, place_by_load
from moetool.analysis.placement.methods.layer_statistics import LayerStatistics
from moetool.analysis.placement.methods.swaps import improve_by_swaps

# Weight of the covariance of loads against joint choices, each in shares of its sum. From 0.05 to
# 0.12 both balance and traffic are better than EPLB's on published traces.
BALANCE_WEIGHT = 0.08
# Two replicas of an expert on one GPU are worth no more than one; affinities add up to 1.
_REPLICAS_APART = -1.0


def place_by_coactivation(
    statistics: LayerStatistics, cluster: Cluster, *, balance_weight: float = BALANCE_WEIGHT
) -> NDArray[np.int64]:
    """Return the expert of each slot of a layer; slots of a GPU follow each other.

    Starts from EPLB's placement and its replicas, and swaps slots: first between nodes, if there
    are several, then between the GPUs of each node.

    Args:
        statistics: Of the decisions that the placement is fitted on.
        cluster: GPUs and nodes to place the experts on; it fits the layer.
        balance_weight: Weight of the covariance of loads; 0 looks at joint choices alone.

    Returns:
        Ids ascend within a GPU. # (num_slots,)
    """
    expert = place_by_load(statistics.load.astype(np.float64), cluster)
    count = np.bincount(expert)
    load = (statistics.load / count)[expert]
    affinity = rate_pairs(statistics, balance_weight=balance_weight)
    affinity = (affinity / np.outer(count, count))[np.ix_(expert, expert)]
    np.fill_diagonal(affinity, 0)
    num_slots = len(expert)
    node = np.arange(num_slots) // (num_slots // cluster.num_nodes)
    if cluster.num_nodes > 1:
        mean_load = load.sum() / cluster.num_nodes
        node = improve_by_swaps(affinity, load, node, mean_load=mean_load)
    affinity[expert[:, None] == expert] = _REPLICAS_APART
    np.fill_diagonal(affinity, 0)
    gpus_per_node = cluster.num_gpus // cluster.num_nodes
    gpu = np.empty(num_slots, dtype=np.int64)
    for index in range(cluster.num_nodes):
        (slots,) = np.nonzero(node == index)
        part = np.empty(len(slots), dtype=np.int64)
        for number, items in enumerate(pack_evenly(load[slots], gpus_per_node)):
            part[items] = number
        part = improve_by_swaps(
            affinity[np.ix_(slots, slots)],
            load[slots],
            part,
            mean_load=load.sum() / cluster.num_gpus,
        )
        gpu[slots] = index * gpus_per_node + part
    return expert[np.lexsort((expert, gpu))]


def rate_pairs(statistics: LayerStatistics, *, balance_weight: float) -> NDArray[np.float64]:
    """Return how much two experts belong on one GPU.

    `C / sum(C) - balance_weight * Cov / trace(Cov)`, where C counts joint choices and Cov is the
    covariance of loads over batches. A term whose divisor is 0 is left out.

    Returns:
        # (num_experts, num_experts)
    """
    affinity = statistics.pairs.astype(np.float64)
    affinity /= max(1.0, affinity.sum())
    covariance = statistics.covariance
    if covariance is not None and covariance.trace() > 0:
        affinity -= balance_weight * covariance / covariance.trace()
    return affinity
