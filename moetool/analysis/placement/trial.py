"""Placements on one cluster, fitted on some prompts and scored on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.advice import add_candidates
from moetool.analysis.placement.methods.cluster import Cluster, spread_evenly
from moetool.analysis.placement.methods.coactivation import BALANCE_WEIGHT, place_by_coactivation
from moetool.analysis.placement.methods.eplb import place_by_load
from moetool.analysis.placement.methods.layer_statistics import LayerStatistics
from moetool.analysis.placement.result import COACTIVATION, CONTIGUOUS, EPLB, METHODS
from moetool.analysis.placement.scoring import LayerScorer
from moetool.analysis.placement.summary import PromptSums
from moetool.trace.metadata import RoutedLayer

Place = tuple[str, int]


class Trial:
    """The placements of every method on one cluster, and their scores on held-out decisions.

    Attributes:
        cluster: GPUs and nodes.
        layers: Those that were placed.
        placements: Of each layer, by method.
        scorers: Of each layer.

    Args:
        cluster: GPUs and nodes.
        layers: Those to place.
        fitted: The statistics of each that placements are fitted on.
        num_prompts: Of the trace.
        tokens_per_batch: Tokens of each batch.
        balance_weight: Weight of balance against traffic, in placement by co-activation.
        advises_vllm: Also score settings of vLLM.
    """

    def __init__(
        self,
        cluster: Cluster,
        layers: Sequence[RoutedLayer],
        fitted: Mapping[Place, LayerStatistics],
        *,
        num_prompts: int,
        tokens_per_batch: int,
        balance_weight: float,
        advises_vllm: bool,
    ) -> None:
        self.cluster, self.layers = cluster, layers
        sizes = {(layer.stack, layer.layer): layer.num_experts for layer in layers}
        self.placements = {
            place: place_by_every_method(fitted[place], cluster, balance_weight=balance_weight)
            for place in sizes
        }
        candidates = dict(self.placements)
        if advises_vllm:
            candidates = {
                place: add_candidates(found, fitted[place].load, cluster)
                for place, found in self.placements.items()
            }
        self.scorers = {
            place: LayerScorer(
                candidates[place],
                num_experts=num_experts,
                cluster=cluster,
                tokens_per_batch=tokens_per_batch,
            )
            for place, num_experts in sizes.items()
        }
        self._reached = {name: np.zeros(num_prompts) for name in METHODS}
        self._imbalance = {name: np.zeros(num_prompts) for name in METHODS}

    def add(self, place: Place, prompt: NDArray[np.int64], experts: NDArray[np.int64]) -> None:
        """Score decisions of a layer.

        Args:
            place: Stack and layer.
            prompt: Index of each decision's prompt. # (num_decisions,)
            experts: -1 where none ran. # (num_decisions, top_k)
        """
        scored = self.scorers[place].add(experts)
        for name in METHODS:
            np.add.at(self._reached[name], prompt, scored[name].reached)
            np.add.at(self._imbalance[name], prompt[scored[name].last], scored[name].imbalance)

    def sum_by_prompt(self, held_out: NDArray[np.bool_]) -> dict[str, PromptSums]:
        """Return sums over the layers for each held-out prompt, by method."""
        return {
            name: PromptSums(self._reached[name][held_out], self._imbalance[name][held_out])
            for name in METHODS
        }


def place_by_every_method(
    statistics: LayerStatistics, cluster: Cluster, *, balance_weight: float = BALANCE_WEIGHT
) -> dict[str, NDArray[np.int64]]:
    """Return the expert of each slot by the name of the method.

    Returns:
        # (num_slots,)
    """
    return {
        CONTIGUOUS: spread_evenly(len(statistics.load), cluster),
        EPLB: place_by_load(statistics.load.astype(np.float64), cluster),
        COACTIVATION: place_by_coactivation(statistics, cluster, balance_weight=balance_weight),
    }
