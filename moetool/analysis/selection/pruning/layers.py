"""Experts to keep in every layer, by a score of the trace or by recorded saliency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from moetool.analysis.selection.baseline import RandomRouters
from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.names import LayerNames
from moetool.analysis.selection.pruning.drops import Drops, count_drops, drop_of_each, keep_experts
from moetool.analysis.selection.result import LayerPruning, Pruning, PruningBaseline
from moetool.analysis.selection.scores import measure_overlap, score_experts
from moetool.analysis.selection.sums.parts import ALL
from moetool.analysis.selection.sums.reading import LayerSums, list_halves
from moetool.errors import InputError, UsageError
from moetool.trace.reading.layer_shapes import Place

# Saliency of each expert, by layer number.
SaliencyOfLayer = Mapping[int, Sequence[float]]


def prune_layers(
    layers: Sequence[LayerSums],
    names: Mapping[Place, LayerNames],
    routers: Sequence[RandomRouters | None],
    *,
    by: Score,
    average: Average,
    ratio: float,
    num_groups: int | None,
    saliency: SaliencyOfLayer | None,
) -> Pruning:
    """Return the experts that stay in each layer with decisions.

    Args:
        layers: Sums of the layers.
        names: Names of the same layers, and the groups of their routers.
        routers: Random routers in place of each layer's, by the same score if it is of the trace.
        by: Score of which the smallest are dropped.
        average: Average that a score of the trace is.
        ratio: Share of each layer's experts to drop.
        num_groups: Groups that lose the same number; None for those of the names.
        saliency: For the score `saliency`.

    Raises:
        InputError: The saliency is of another model.
        UsageError: Too much would be dropped, or nothing, or layers would share a name.
    """
    pruned: list[LayerPruning] = []
    all_groups: set[int] = set()
    for layer, random in zip(layers, routers, strict=True):
        place = (layer.shape.stack, layer.shape.layer)
        if layer.sums is None:
            continue
        groups = num_groups or names[place].num_groups
        all_groups.add(groups)
        drops = count_drops(
            layer.shape.num_experts,
            ratio=ratio,
            top_k=layer.shape.top_k,
            num_groups=groups,
            top_groups=names[place].top_groups if groups == names[place].num_groups else None,
        )
        scores = (
            _take_saliency(layer, saliency or {})
            if by is Score.SALIENCY
            else _score(layer, ALL, by=by, average=average)
        )
        pruned.append(
            _prune_layer(
                layer,
                scores,
                drops,
                module=names[place].block,
                overlap=None
                if by is Score.SALIENCY
                else _compare_halves(layer, drops, by=by, average=average),
                baseline=_expect_random(layer, drops, random, by=by),
            )
        )
    if len({layer.module for layer in pruned}) < len(pruned):
        raise UsageError(
            "Two routed layers of the model are in one module, and a list of experts to keep has "
            "one entry for each module.",
            hint="Choose layers of one stack with --layers.",
        )
    numbers = {len(layer.dropped) for layer in pruned}
    baselines = [layer.baseline for layer in pruned if layer.baseline is not None]
    return Pruning(
        ratio=ratio,
        by=by,
        num_groups=max(all_groups, default=1),
        num_dropped=numbers.pop() if len(numbers) == 1 else None,
        dropped_share=average_known([layer.dropped_share for layer in pruned]),
        overlap=average_known([layer.overlap for layer in pruned]),
        baseline=PruningBaseline(
            dropped_share=average_known([each.dropped_share for each in baselines]),
            overlap=average_known([each.overlap for each in baselines]),
        ),
        retained={layer.module: layer.retained for layer in pruned},
        layers=tuple(pruned),
    )


def _prune_layer(
    layer: LayerSums,
    scores: Sequence[float],
    drops: Drops,
    *,
    module: str,
    overlap: float | None,
    baseline: PruningBaseline | None,
) -> LayerPruning:
    assert layer.sums is not None
    retained = keep_experts(scores, drops)
    dropped = sorted(set(range(layer.shape.num_experts)) - set(retained))
    assignments = layer.sums.assignments[ALL]
    total = int(assignments.sum())
    return LayerPruning(
        stack=layer.shape.stack,
        layer=layer.shape.layer,
        module=module,
        retained=tuple(retained),
        dropped=tuple(dropped),
        dropped_share=float(assignments[dropped].sum() / total) if total else None,
        overlap=overlap,
        baseline=baseline,
    )


def _expect_random(
    layer: LayerSums, drops: Drops, routers: RandomRouters | None, *, by: Score
) -> PruningBaseline | None:
    """Return the figures of a router that chooses at random, with the trace's weights."""
    if by is Score.SALIENCY:
        # Which experts are dropped has nothing to do with how often they are chosen.
        return PruningBaseline(dropped_share=drops.number / layer.num_ids, overlap=None)
    if routers is None:
        return None
    choose = partial(drop_of_each, drops=drops)
    return PruningBaseline(
        dropped_share=routers.share_of(choose), overlap=routers.measure_overlap(choose)
    )


def _choose_dropped(scores: Sequence[float], *, drops: Drops) -> set[int]:
    return set(range(len(scores))) - set(keep_experts(scores, drops))


def average_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _compare_halves(layer: LayerSums, drops: Drops, *, by: Score, average: Average) -> float | None:
    """Return the mean share of dropped experts that both halves of the prompts would drop."""
    assert layer.sums is not None
    shares = []
    for parts in list_halves(layer):
        first, second = (
            _choose_dropped(_score(layer, part, by=by, average=average), drops=drops)
            for part in parts
        )
        shares.append(measure_overlap(first, second))
    return float(np.mean(shares)) if shares else None


def _score(layer: LayerSums, part: int, *, by: Score, average: Average) -> Sequence[float]:
    assert layer.sums is not None
    scores = score_experts(layer.sums, part, by=by, average=average, top_k=layer.decision_size)
    assert scores is not None
    kept: list[float] = scores[: layer.shape.num_experts].tolist()
    return kept


def _take_saliency(layer: LayerSums, saliency: SaliencyOfLayer) -> Sequence[float]:
    number, num_experts = layer.shape.layer, layer.shape.num_experts
    if number not in saliency or len(saliency[number]) != num_experts:
        seen = f"{len(saliency[number])} experts" if number in saliency else "no saliency"
        raise InputError(
            f"The saliency is of another model: it has {seen} in layer {number}, and the trace has "
            f"{num_experts}.",
            hint="Record it with the trace: moetool route-trace --saliency.",
        )
    return saliency[number]
