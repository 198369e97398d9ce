"""Selection of the experts to fine-tune or to keep, from a trace's sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.freezing import list_trainable
from moetool.analysis.selection.names import LayerNames, check_names, guess_names
from moetool.analysis.selection.prune import SaliencyOfLayer, prune_layers
from moetool.analysis.selection.reading import LayerSums, list_halves
from moetool.analysis.selection.result import LayerSelection, Selection, SelectionBaseline
from moetool.analysis.selection.scores import (
    choose_experts,
    round_scores,
    score_experts,
)
from moetool.analysis.selection.stability import (
    expect_chosen,
    expect_random_overlap,
    measure_overlap,
)
from moetool.analysis.selection.sums import ALL
from moetool.trace.facts import TraceFacts
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.wording import number_of

# With fewer prompts, a selection is about them more than about their domain.
_ENOUGH_PROMPTS = 20


@dataclass(frozen=True)
class SelectionRequest:
    """Choices of a selection: the score, how much of it, and what else is listed.

    Attributes:
        by: Score of the experts.
        top_p: Cumulative score at which the selection of a layer ends.
        average: Average that the score is.
        domains: Domains whose prompts were summed; None for all.
        with_shared_experts: Also train the shared experts.
        with_other_modules: Also train all modules that hold no experts.
        prune_ratio: Share of experts to drop; None to drop none.
        num_groups: Groups that lose the same number; None for those of the model, if it is known.
        saliency: Of each expert, by layer number, for the score `saliency`.
        has_freeze_list: Make a freeze list.
    """

    by: Score = Score.TOKEN
    top_p: float = 0.2
    average: Average = Average.MICRO
    domains: tuple[str, ...] | None = None
    with_shared_experts: bool = False
    with_other_modules: bool = False
    prune_ratio: float | None = None
    num_groups: int | None = None
    saliency: SaliencyOfLayer | None = None
    has_freeze_list: bool = False

    @property
    def selects_by(self) -> Score:
        """The score of the selection: ESFT has none of saliency."""
        return Score.TOKEN if self.by is Score.SALIENCY else self.by


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
    selected = tuple(_select_layer(layer, request) for layer in layers)
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
            by=request.by,
            average=request.average,
            ratio=request.prune_ratio,
            num_groups=request.num_groups,
            saliency=request.saliency,
        )
    overlaps = [layer.overlap for layer in selected if layer.overlap is not None]
    random = [
        layer.baseline.overlap
        for layer in selected
        if layer.baseline is not None and layer.baseline.overlap is not None
    ]
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
        overlap=float(np.mean(overlaps)) if overlaps else None,
        random_overlap=float(np.mean(random)) if random else None,
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
            *_explain_gate(request),
            *_explain(layers, selected, request, is_guessed=names is None, num_known=len(chosen)),
        ),
    )


def _explain_gate(request: SelectionRequest) -> list[str]:
    if request.by is not Score.GATE:
        return []
    return [
        "A random router has no weights, so its figures are those of token scores: with weights as "
        "uneven as these, a random selection by gate would be a little smaller."
    ]


def _select_layer(layer: LayerSums, request: SelectionRequest) -> LayerSelection:
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
            selected_score=None,
            total_score=None,
            scores=None,
            assignments=(0,) * num_experts,
            gate_mass=None,
            missed=tuple(range(num_experts)),
            overlap=None,
            baseline=None,
        )
    rounded = round_scores(scores)
    # Identity experts, which come last, have nothing to train.
    selected = choose_experts(rounded[: shape.num_experts], top_p=request.top_p)
    decisions = int(sums.decisions[ALL])
    num_tokens = decisions * layer.decision_size // shape.top_k
    overlap = _compare_halves(layer, request)
    total = float(scores.sum())
    # A random router's scores add up to the same.
    random_top_p = request.top_p / total if total else 1.0
    return LayerSelection(
        stack=shape.stack,
        layer=shape.layer,
        num_experts=num_experts,
        top_k=shape.top_k,
        num_tokens=num_tokens,
        selected=tuple(selected),
        selected_score=float(sum(scores[selected])),
        total_score=total,
        scores=tuple(rounded),
        assignments=tuple(sums.assignments[ALL].tolist()),
        gate_mass=None if sums.weights is None else tuple(sums.weights[ALL].tolist()),
        missed=tuple(np.flatnonzero(sums.assignments[ALL] == 0).tolist()),
        overlap=overlap,
        baseline=SelectionBaseline(
            score=total / num_experts,
            num_selected=expect_chosen(
                num_experts, shape.top_k, max(1, num_tokens), top_p=random_top_p
            ),
            overlap=None
            if overlap is None
            else expect_random_overlap(num_experts, shape.top_k, num_tokens, top_p=random_top_p),
            num_missed=num_experts * (1 - shape.top_k / num_experts) ** num_tokens,
        ),
    )


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


def _explain(
    layers: Sequence[LayerSums],
    selected: Sequence[LayerSelection],
    request: SelectionRequest,
    *,
    is_guessed: bool,
    num_known: int,
) -> Iterator[str]:
    """Yield what a reader should know about the figures, as sentences."""
    silent = sum(layer.scores is None for layer in selected)
    if silent:
        yield f"{number_of(silent, 'layer')} without decisions: no expert is selected there"
    if num_known > len(layers):
        yield (
            f"{number_of(num_known - len(layers), 'routed layer')} of the model were not read: "
            "their lists are empty, and ESFT freezes their experts"
        )
    if len({layer.shape.stack for layer in layers}) > 1:
        yield (
            "the model has several stacks: keys are stack.layer, which ESFT's own code doesn't know"
        )
    if any(layer.shape.num_identity_experts for layer in layers):
        yield "identity experts have no parameters: they are never selected or dropped"
    sums = [layer.total_score for layer in selected if layer.total_score is not None]
    if sums and request.selects_by is Score.GATE and (min(sums) < 0.99 or max(sums) > 1.01):
        yield (
            f"gate scores of a layer add up to {min(sums):.2f} to {max(sums):.2f}, not to 1: "
            "top-p is compared with the sum of weights as they are, as ESFT does"
        )
    if request.by is Score.SALIENCY:
        yield "experts to train are selected by token score: ESFT has none of saliency"
    prompts = [int(layer.sums.prompts[ALL]) for layer in layers if layer.sums is not None]
    if prompts and max(prompts) == 0:
        yield "overlap is unknown: counts have no prompts to divide into halves"
    elif prompts and max(prompts) < 2:
        yield "overlap is unknown: one prompt can't be divided into halves"
    elif prompts and max(prompts) < _ENOUGH_PROMPTS:
        yield (
            f"only {max(prompts)} prompts: the selection may be about them more than about what "
            "they stand for"
        )
    needs_names = request.has_freeze_list or request.prune_ratio is not None
    if needs_names and is_guessed and any(not layer.shape.module for layer in layers):
        yield (
            "the trace doesn't name its modules: they are named as in most models of transformers, "
            "model.layers.N.mlp; --model gives a model's own names"
        )
    elif request.has_freeze_list and is_guessed:
        yield (
            "parameters are named as transformers 5 names fused experts, gate_up_proj and "
            "down_proj; --model gives a model's own names"
        )
