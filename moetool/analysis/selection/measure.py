"""Selection of the experts to fine-tune or to keep, from a trace's sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.baseline import RandomRouters, expect_missed, simulate_routers
from moetool.analysis.selection.freezing import list_trainable
from moetool.analysis.selection.names import LayerNames, check_names, guess_names
from moetool.analysis.selection.notes import explain_selection
from moetool.analysis.selection.pruning.layers import average_known, prune_layers
from moetool.analysis.selection.request import SelectionRequest
from moetool.analysis.selection.result import (
    LayerSelection,
    OverallBaseline,
    Selection,
    SelectionBaseline,
)
from moetool.analysis.selection.scores import (
    choose_experts,
    choose_of_each,
    measure_overlap,
    round_scores,
    score_experts,
)
from moetool.analysis.selection.sums.parts import ALL
from moetool.analysis.selection.sums.reading import LayerSums, list_halves
from moetool.trace.facts import TraceFacts
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place


def select_from_sums(
    layers: Sequence[LayerSums],
    request: SelectionRequest,
    *,
    facts: TraceFacts,
    known: Sequence[RoutedLayer] = (),
    names: Mapping[Place, LayerNames] | None = None,
    notes: Sequence[str] = (),
) -> Selection:
    """Return the selected experts of layers.

    Args:
        layers: Sums of the layers that were read.
        request: The score, and what else is wanted.
        facts: Facts about the trace, or about the load table.
        known: Every routed layer of the model, as far as it is known.
        names: Names of the model's layers; by default those of the trace's metadata.
        notes: Notes of the reader.

    Raises:
        InputError: The names are of another model.
        UsageError: Pruning drops too much or nothing.
    """
    shapes = {(layer.shape.stack, layer.shape.layer): layer.shape for layer in layers}
    routers = [
        simulate_routers(layer, by=request.selects_by, average=request.average) for layer in layers
    ]
    selected = tuple(
        _select_layer(layer, request, own) for layer, own in zip(layers, routers, strict=True)
    )
    every = {**{(layer.stack, layer.layer): layer for layer in known}, **shapes}
    named = guess_names(every)
    if names is not None:
        check_names(shapes, names)
        named = dict(names)
    # Every routed layer of the model: ESFT looks each of them up.
    chosen: dict[Place, tuple[int, ...]] = dict.fromkeys(sorted(named), ())
    chosen |= {(layer.stack, layer.layer): layer.selected for layer in selected}
    pruning = None
    if request.prune_ratio is not None:
        pruning = prune_layers(
            layers,
            named,
            routers,
            by=request.by,
            average=request.average,
            ratio=request.prune_ratio,
            num_groups=request.num_groups,
            saliency=request.saliency,
        )
    return Selection(
        trace=facts,
        by=request.by,
        average=request.average,
        top_p=request.top_p,
        domains=request.domains,
        num_prompts=max(
            (int(layer.sums.prompts[ALL]) for layer in layers if layer.sums is not None), default=0
        ),
        experts=_key_by_layer(chosen),
        shared_experts=request.with_shared_experts,
        non_expert_modules=request.with_other_modules,
        layers=selected,
        **_sum_up(selected),
        pruning=pruning,
        freeze_list=list_trainable(
            chosen,
            named,
            with_shared_experts=request.with_shared_experts,
            with_other_modules=request.with_other_modules,
        )
        if request.has_freeze_list
        else None,
        notes=(
            *notes,
            *explain_selection(
                layers, selected, request, is_guessed=names is None, num_known=len(chosen)
            ),
        ),
    )


def _select_layer(
    layer: LayerSums, request: SelectionRequest, routers: RandomRouters | None
) -> LayerSelection:
    shape, sums = layer.shape, layer.sums
    num_experts = shape.num_experts + shape.num_identity_experts
    scores = _score(layer, ALL, request)
    if sums is None or scores is None:
        return LayerSelection(
            stack=shape.stack,
            layer=shape.layer,
            num_experts=num_experts,
            top_k=shape.top_k,
            num_tokens=0,
            selected=(),
            num_selected=0,
            selected_score=None,
            total_score=None,
            scores=None,
            assignments=(0,) * num_experts,
            gate_mass=None,
            missed=tuple(range(num_experts)),
            num_missed=num_experts,
            overlap=None,
            baseline=None,
        )
    rounded = round_scores(scores)
    # Identity experts, which come last, have nothing to train.
    selected = choose_experts(rounded[: shape.num_experts], top_p=request.top_p)
    missed = np.flatnonzero(sums.assignments[ALL] == 0).tolist()
    overlap = _compare_halves(layer, request)
    total = float(scores.sum())
    choose = partial(choose_of_each, top_p=request.top_p)
    return LayerSelection(
        stack=shape.stack,
        layer=shape.layer,
        num_experts=num_experts,
        top_k=shape.top_k,
        num_tokens=int(sums.decisions[ALL]) * layer.decision_size // shape.top_k,
        selected=tuple(selected),
        num_selected=len(selected),
        selected_score=float(sum(scores[selected])),
        total_score=total,
        scores=tuple(rounded),
        assignments=tuple(sums.assignments[ALL].tolist()),
        gate_mass=None if sums.weights is None else tuple(sums.weights[ALL].tolist()),
        missed=tuple(missed),
        num_missed=len(missed),
        overlap=overlap,
        baseline=None
        if routers is None
        else SelectionBaseline(
            score=total / num_experts,
            num_selected=routers.count_chosen(choose),
            num_missed=expect_missed(layer),
            overlap=None if overlap is None else routers.measure_overlap(choose),
        ),
    )


def _sum_up(selected: Sequence[LayerSelection]) -> dict[str, Any]:
    """Return the figures of all layers with decisions, next to those of a random router."""
    known = [layer for layer in selected if layer.scores is not None]
    baselines = [layer.baseline for layer in known if layer.baseline is not None]
    return {
        "num_experts": sum(layer.num_experts for layer in known),
        "num_selected": sum(layer.num_selected for layer in known),
        "num_missed": sum(layer.num_missed for layer in known),
        "overlap": average_known([layer.overlap for layer in known]),
        "baseline": OverallBaseline(
            num_selected=sum(baseline.num_selected for baseline in baselines),
            num_missed=sum(baseline.num_missed for baseline in baselines),
            overlap=average_known([baseline.overlap for baseline in baselines]),
        )
        if baselines
        else None,
    }


def _compare_halves(layer: LayerSums, request: SelectionRequest) -> float | None:
    """Return the mean overlap of the choices from two halves of the prompts."""
    overlaps = []
    for halves in list_halves(layer):
        chosen = []
        for part in halves:
            scores = _score(layer, part, request)
            assert scores is not None
            rounded = round_scores(scores[: layer.shape.num_experts])
            chosen.append(choose_experts(rounded, top_p=request.top_p))
        overlaps.append(measure_overlap(*chosen))
    return float(np.mean(overlaps)) if overlaps else None


def _score(layer: LayerSums, part: int, request: SelectionRequest) -> NDArray[np.float64] | None:
    if layer.sums is None:
        return None
    return score_experts(
        layer.sums,
        part,
        by=request.selects_by,
        average=request.average,
        top_k=layer.decision_size,
    )


def _key_by_layer(chosen: Mapping[Place, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    stacks = {stack for stack, _ in chosen}
    if len(stacks) == 1:
        return {str(layer): experts for (_, layer), experts in chosen.items()}
    return {f"{stack}.{layer}": experts for (stack, layer), experts in chosen.items()}
