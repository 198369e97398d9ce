"""Measuring co-activation: one pass over a trace, then one look at each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.baseline import find_pair_baseline
from moetool.analysis.coactivation.grouping import group_experts
from moetool.analysis.coactivation.matrices import (
    PairMatrix,
    make_group_matrix,
    make_layer_matrix,
    make_transition_matrix,
)
from moetool.analysis.coactivation.prediction import fit_predictor, score_predictor
from moetool.analysis.coactivation.result import (
    Coactivation,
    ExpertGroup,
    ExpertPair,
    GroupPairs,
    GroupShare,
    LayerCoactivation,
    Transition,
    Verdict,
)
from moetool.analysis.coactivation.tally import LayerTally, PairTally
from moetool.analysis.statistics.decision_sizes import make_sizes
from moetool.analysis.statistics.prediction import HitRate
from moetool.trace.windows.reader import DecisionReader

# With fewer prompts, intervals are wide and few pairs can be significant.
_ENOUGH_PROMPTS = 20
_PAIRS_PER_GROUP = 10
# Decisions in which a pair should occur for its absence to be worth counting.
_EXPECTED_OF_NEVER = 10


def measure_coactivation(
    reader: DecisionReader,
    *,
    by: str = "domain",
    num_listed: int = 100,
    show: Callable[[str], None] = lambda _: None,
) -> Coactivation:
    """Return which experts are chosen together, in a layer and from one layer to the next.

    The trace is read once. Intervals and p-values take prompts as the sample. The predictor of the
    next layer's experts is fitted on half of the prompts, chosen by a hash of their ids, and scored
    on the others, of which the first 16,384 tokens in the order of the hash suffice.

    Args:
        reader: The trace.
        by: The column that the reader groups tokens by.
        num_listed: Pairs in each list. Significant ones come before others, so that chance does
            not fill the list; in the list, the largest lift is first.
        show: Receives a word on what is being done.

    Raises:
        InputError: A row is not one of a trace, or the counts would fill the memory.
    """
    tally = PairTally(reader)
    for window in reader:
        tally.add(window)
    show("testing pairs")
    groups = reader.groups
    layers = tuple(
        _describe(tally, index, groups=groups, num_listed=num_listed)
        for index in range(len(tally.layers))
    )
    predictions = [
        layer.next_layer.prediction
        for layer in layers
        if layer.next_layer is not None and layer.next_layer.prediction is not None
    ]
    chance = _mean([item.baseline.hit_rate for item in predictions])
    return Coactivation(
        trace=reader.facts,
        by=by,
        layers=layers,
        verdict=reach_verdict(layers),
        hit_rate=_mean([item.hit_rate for item in predictions]),
        popularity=_mean([item.popularity for item in predictions]),
        baseline=None if chance is None else HitRate(chance),
        notes=(
            *reader.notes,
            *_make_notes(layers, tally, num_prompts=reader.facts.num_prompts or 0),
        ),
    )


def _describe(
    tally: PairTally, index: int, *, groups: Sequence[str], num_listed: int
) -> LayerCoactivation:
    shape, counts = tally.shapes[index], tally.layers[index]
    pairs = counts.pairs
    matrix = make_layer_matrix(pairs)
    is_above = matrix.is_tested & (matrix.lift > matrix.expected_lift)
    is_below = matrix.is_tested & (matrix.lift < matrix.expected_lift)
    layer = LayerCoactivation(
        stack=shape.stack,
        layer=shape.layer,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        num_tokens=pairs.num_decisions,
        baseline=find_pair_baseline(
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            num_decisions=pairs.num_decisions,
            sizes=make_sizes(pairs.sizes),
        ),
        num_pairs=len(matrix),
        num_above=int(is_above.sum()),
        num_below=int(is_below.sum()),
        num_never=int(((matrix.count == 0) & (matrix.expected >= _EXPECTED_OF_NEVER)).sum()),
        pairs=_list_pairs(matrix, num_listed),
        expert_groups=tuple(
            sorted(
                _find_groups(matrix, is_above, shape.num_experts),
                key=lambda group: group.loads.share_of_pairs - group.share_of_pairs,
            )
        ),
        by_group=_list_by_group(counts, groups) if tally.has_groups else (),
        next_layer=_describe_next(tally, index, num_listed),
        matrix=matrix,
    )
    # Of a large model, the counts of all layers and their matrices would fill the memory.
    counts.clear()
    return layer


def _describe_next(tally: PairTally, index: int, num_listed: int) -> Transition | None:
    counts = tally.layers[index]
    if counts.across is None:
        return None
    fitted, others = counts.across
    following = tally.shapes[index + 1]
    whole = fitted.join(others)
    matrix = make_transition_matrix(whole)
    scored = None
    if fitted.num_tokens:
        scored = score_predictor(
            fit_predictor(counts.fitted, fitted),
            fitted,
            tally.sample.collect(index),
            top_k=following.top_k,
        )
    return Transition(
        layer=following.layer,
        num_tokens=whole.num_tokens,
        pairs=_list_pairs(matrix, num_listed),
        prediction=scored[0] if scored else None,
        prefetch=scored[1] if scored else (),
        matrix=matrix,
    )


def _list_by_group(counts: LayerTally, groups: Sequence[str]) -> tuple[GroupPairs, ...]:
    if len(groups) < 2:
        return ()
    return tuple(
        GroupPairs(
            group=groups[group],
            num_tokens=pairs.num_decisions,
            baseline=find_pair_baseline(
                num_experts=pairs.num_experts,
                top_k=pairs.top_k,
                num_decisions=pairs.num_decisions,
                sizes=make_sizes(pairs.sizes),
                has_strongest=False,
            ),
            pairs=_list_pairs(
                make_group_matrix(pairs) if pairs.moments is None else make_layer_matrix(pairs),
                _PAIRS_PER_GROUP,
            ),
        )
        for group, pairs in sorted(counts.by_group.items(), key=lambda item: groups[item[0]])
    )


def _list_pairs(matrix: PairMatrix, most: int) -> tuple[ExpertPair, ...]:
    rows = matrix.take(matrix.choose_strongest(most)).iter_rows()
    return tuple(
        ExpertPair(experts=(row.pop("expert_i"), row.pop("expert_j")), **row) for row in rows
    )


def _find_groups(
    matrix: PairMatrix, is_above: NDArray[np.bool_], num_experts: int
) -> Iterator[ExpertGroup]:
    """Yield groups of experts, see `group_experts`. Two are linked if their lift is above chance."""
    if not is_above.any():
        return
    strength = np.full((num_experts, num_experts), -np.inf)
    is_linked = np.zeros(strength.shape, dtype=bool)
    i, j = matrix.expert_i, matrix.expert_j
    with np.errstate(divide="ignore", invalid="ignore"):
        strength[i, j] = strength[j, i] = matrix.lift / matrix.expected_lift
    is_linked[i, j] = is_linked[j, i] = is_above
    total = matrix.count.sum()
    for experts in group_experts(strength, is_linked):
        within = np.isin(i, experts) & np.isin(j, experts)
        yield ExpertGroup(
            experts=experts,
            least_lift=float(matrix.lift[within].min()),
            share_of_pairs=float(matrix.count[within].sum() / total),
            loads=GroupShare(float(matrix.expected[within].sum() / total)),
            baseline=GroupShare(float(within.sum() / len(matrix))),
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def reach_verdict(layers: Sequence[LayerCoactivation]) -> Verdict:
    """Return what the figures of all layers support."""
    predictions = [
        layer.next_layer.prediction
        for layer in layers
        if layer.next_layer is not None and layer.next_layer.prediction is not None
    ]
    num_beyond = sum(prediction.is_gain_certain for prediction in predictions)
    return Verdict(
        num_pairs=sum(layer.num_pairs for layer in layers),
        num_above=sum(layer.num_above for layer in layers),
        num_below=sum(layer.num_below for layer in layers),
        is_tested=any(pair.p_value is not None for layer in layers for pair in layer.pairs),
        num_predicted_layers=len(predictions),
        num_layers_beyond_popularity=num_beyond,
        does_predict=2 * num_beyond > len(predictions) if predictions else None,
    )


def _make_notes(
    layers: Sequence[LayerCoactivation], tally: PairTally, *, num_prompts: int
) -> Iterator[str]:
    """Yield warnings, and why numbers are None."""
    if all(layer.top_k == 1 for layer in layers):
        yield "Each decision chooses one expert, so no pairs occur in a layer."
    elif any(layer.top_k == 1 for layer in layers):
        yield "Layers of top-1 have no pairs."
    if num_prompts < 2:
        yield "A single prompt shows no spread between prompts: no pair is tested."
    elif num_prompts < _ENOUGH_PROMPTS:
        yield f"Fewer than {_ENOUGH_PROMPTS} prompts: intervals are wide."
    if not tally.has_groups:
        yield "Pairs were not counted by group: the groups, layers and experts are too many."
    elif not tally.has_group_moments and any(layer.by_group for layer in layers):
        yield (
            "Pairs of single groups are not tested: the groups, layers and experts are too many "
            "for sums over prompts."
        )
    if any(layer.num_pairs and not layer.matrix.is_fitted for layer in layers):
        yield "The loads of a layer could not be fitted: its pairs have no expected lift and no p."
    following = [layer.next_layer for layer in layers if layer.next_layer is not None]
    if any(each.prediction is None for each in following):
        yield (
            "Some layers' experts are not predicted from the layer before: half of the prompts "
            "have none in one of the two layers."
            if num_prompts > 1
            else "The next layer's experts are not predicted: that takes two prompts."
        )
