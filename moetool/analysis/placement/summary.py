"""Scores of layers and methods, put together from sums over decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.layer_statistics import LayerStatistics
from moetool.analysis.placement.random_router import RouterShape, score_random_router
from moetool.analysis.placement.result import (
    CONTIGUOUS,
    EPLB,
    METHODS,
    Change,
    Direction,
    LayerPlacement,
    MethodPlacement,
)
from moetool.analysis.placement.scoring import LayerScorer, PlacementScore, share_out
from moetool.analysis.statistics.students_t import find_quantile
from moetool.trace.metadata import RoutedLayer

Place = tuple[str, int]
Slots = NDArray[np.int64]

# Bytes of all layers add up; other scores are averaged.
_ADDED = ("all_to_all_bytes_per_token", "cross_node_bytes_per_token")


@dataclass(frozen=True)
class SentBytes:
    """The size of a token that is sent to a GPU and back; None if unknown.

    Attributes:
        hidden_size: Values of each token.
        bytes_per_value: Bytes of each value.
        reason: Why one is unknown, or the source of an assumption, as a sentence.
    """

    hidden_size: int | None
    bytes_per_value: int | None
    reason: str | None = None

    def add_to(self, score: PlacementScore, cluster: Cluster) -> PlacementScore:
        """Return a score with the bytes that a token sends in one layer.

        A token is sent once to each GPU that it reaches other than its own, which is any of them
        with equal chance, and comes back: 2 * others * hidden_size * bytes_per_value.
        """
        if self.hidden_size is None or self.bytes_per_value is None:
            return score
        size = 2 * self.hidden_size * self.bytes_per_value
        return replace(
            score,
            all_to_all_bytes_per_token=_count_sent(score.fan_out, cluster.num_gpus, size),
            cross_node_bytes_per_token=_count_sent(score.node_fan_out, cluster.num_nodes, size),
        )


@dataclass(frozen=True)
class PromptSums:
    """Sums over the layers for each held-out prompt.

    Attributes:
        reached: GPUs that its tokens reach. # (num_prompts,)
        imbalance: Of the batches that end in it. # (num_prompts,)
    """

    reached: NDArray[np.float64]
    imbalance: NDArray[np.float64]


def describe_layers(
    layers: Sequence[RoutedLayer],
    *,
    totals: Mapping[Place, LayerStatistics],
    placements: Mapping[Place, Mapping[str, Slots]],
    scorers: Mapping[Place, LayerScorer],
    cluster: Cluster,
    tokens_per_batch: int,
    sent: SentBytes,
) -> tuple[LayerPlacement, ...]:
    """Return the scores of each layer, next to those of a random router.

    Args:
        layers: Those with decisions.
        totals: Statistics over all prompts.
        placements: Those that were scored, by method.
        scorers: Of each layer, after the last decision.
        cluster: GPUs and nodes.
        tokens_per_batch: Tokens of each batch.
        sent: Size of a token.
    """
    described = []
    for layer in layers:
        place = (layer.stack, layer.layer)
        scorer, total = scorers[place], totals[place]
        num_ids = layer.num_experts + layer.num_identity_experts
        shape = RouterShape(
            layer.num_experts,
            layer.num_identity_experts,
            # Only rows that were not checked can have more experts than there are.
            tuple((min(size, num_ids), number) for size, number in scorer.sizes),
            scorer.num_decisions,
        )
        scores = scorer.scores()
        baseline = {
            method: score_random_router(
                shape,
                *(
                    share_out(slots, num_experts=layer.num_experts, num_parts=num_parts)
                    for num_parts in (cluster.num_gpus, cluster.num_nodes)
                ),
                tokens_per_batch=tokens_per_batch if scorer.num_batches else None,
                num_tokens=scorer.num_decisions,
            )
            for method, slots in placements[place].items()
        }
        described.append(
            LayerPlacement(
                stack=layer.stack,
                layer=layer.layer,
                num_experts=num_ids,
                top_k=layer.top_k,
                num_tokens=total.num_decisions,
                load=tuple(total.load.tolist()),
                scores={method: sent.add_to(scores[method], cluster) for method in METHODS},
                baseline={method: sent.add_to(baseline[method], cluster) for method in METHODS},
            )
        )
    return tuple(described)


def describe_methods(
    layers: Sequence[LayerPlacement],
    final: Mapping[str, Mapping[str, Slots]],
    *,
    scored: Mapping[str, Mapping[str, Slots]] | None,
    by_prompt: Mapping[str, PromptSums],
) -> dict[str, MethodPlacement | None]:
    """Return each method's scores over all layers, and its slots.

    Args:
        layers: With the scores of each.
        final: Expert of each slot, by layer and method, fitted on all prompts.
        scored: The same, fitted on half of the prompts: those that the scores are of. None if they
            are of `final`.
        by_prompt: Sums for each held-out prompt, by method.
    """
    methods: dict[str, MethodPlacement | None] = {}
    for method in METHODS:
        mine, others = by_prompt[method], by_prompt[CONTIGUOUS]
        methods[method] = MethodPlacement(
            **vars(average_scores([layer.scores[method] for layer in layers])),
            baseline=average_scores([layer.baseline[method] for layer in layers]),
            fan_out_change=estimate_change(mine.reached, others.reached),
            batch_imbalance_change=estimate_change(mine.imbalance, others.imbalance),
            layers_better_than_eplb=None
            if method == EPLB
            else share_of_better([(layer.scores[method], layer.scores[EPLB]) for layer in layers]),
            physical_to_logical=_list_slots(layers, final, method),
            scored_physical_to_logical=None
            if scored is None
            else _list_slots(layers, scored, method),
        )
    return methods


def _list_slots(
    layers: Sequence[LayerPlacement], slots: Mapping[str, Mapping[str, Slots]], method: str
) -> dict[str, tuple[int, ...]]:
    return {layer.name: tuple(slots[layer.name][method].tolist()) for layer in layers}


def average_scores(scores: Sequence[PlacementScore]) -> PlacementScore:
    """Return the mean of layers' scores, and the sum of their bytes; None where one is None."""
    values: dict[str, float | None] = {}
    for field in fields(PlacementScore):
        known = [getattr(score, field.name) for score in scores]
        if not known or None in known:
            values[field.name] = None
        else:
            values[field.name] = sum(known) / (1 if field.name in _ADDED else len(known))
    return PlacementScore(**values)


def estimate_change(mine: NDArray[np.float64], others: NDArray[np.float64]) -> Change | None:
    """Return the relative change of a sum over prompts, and its 95 % interval.

    The change is a ratio of sums over sampled prompts, with the variance that Cochran (Sampling
    Techniques, 6.3) gives for it, `n / (n - 1) * sum (mine - ratio * others)^2 / (sum others)^2`,
    and Student's t with n - 1 degrees of freedom.

    Args:
        mine: # (num_prompts,)
        others: Compared with; prompts that have 0 here are left out. # (num_prompts,)

    Returns:
        None without a prompt to compare.
    """
    mine, others = mine[others > 0], others[others > 0]
    total, number = float(others.sum()), len(others)
    if not number:
        return None
    ratio = float(mine.sum()) / total
    if number < 2:
        return Change(ratio - 1, None, None, Direction.UNKNOWN)
    variance = number / (number - 1) * float(((mine - ratio * others) ** 2).sum()) / total**2
    margin = find_quantile(number - 1) * variance**0.5
    low, high = ratio - 1 - margin, ratio - 1 + margin
    verdict = Direction.DOWN if high < 0 else Direction.UP if low > 0 else Direction.NONE
    return Change(ratio - 1, low, high, verdict)


def _count_sent(reached: float | None, num_parts: int, size: int) -> float | None:
    return None if reached is None else reached * (num_parts - 1) / num_parts * size


def share_of_better(pairs: Sequence[tuple[PlacementScore, PlacementScore]]) -> float | None:
    """Return the share of pairs of scores whose first has the lower batch imbalance."""
    known = [
        mine.batch_imbalance < others.batch_imbalance
        for mine, others in pairs
        if mine.batch_imbalance is not None and others.batch_imbalance is not None
    ]
    return sum(known) / len(known) if known else None
