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
    LayerCoactivation,
    Transition,
)
from moetool.analysis.coactivation.tally import LayerTally, PairTally
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
    most_pairs: int = 100,
    show: Callable[[str], None] = lambda _: None,
) -> Coactivation:
    """Return which experts are chosen together, in a layer and from one layer to the next.

    The trace is read once. Intervals and p-values take prompts as the sample. The predictor of the
    next layer's experts is fitted on half of the prompts, chosen by a hash of their ids, and scored
    on the others, of which the first 16,384 tokens in the order of the hash suffice.

    Args:
        reader: The trace.
        by: The column that the reader groups tokens by.
        most_pairs: Pairs in each list. Significant ones come before others, so that chance does
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
        _describe(tally, index, groups=groups, most_pairs=most_pairs)
        for index in range(len(tally.layers))
    )
    predictions = [
        layer.next_layer.prediction
        for layer in layers
        if layer.next_layer is not None and layer.next_layer.prediction is not None
    ]
    return Coactivation(
        trace=reader.facts,
        by=by,
        layers=layers,
        hit_rate=_mean([item.hit_rate for item in predictions]),
        popularity=_mean([item.popularity for item in predictions]),
        random=_mean([item.random for item in predictions]),
        notes=(
            *reader.notes,
            *_make_notes(
                layers,
                has_groups=tally.has_groups,
                num_prompts=reader.facts.num_prompts or 0,
            ),
        ),
    )


def _describe(
    tally: PairTally, index: int, *, groups: Sequence[str], most_pairs: int
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
            num_experts=shape.num_experts, top_k=shape.top_k, num_decisions=pairs.num_decisions
        ),
        num_pairs=len(matrix),
        num_above=int(is_above.sum()),
        num_below=int(is_below.sum()),
        num_never=int(((matrix.count == 0) & (matrix.expected >= _EXPECTED_OF_NEVER)).sum()),
        pairs=_list_pairs(matrix, most_pairs),
        expert_groups=tuple(
            sorted(
                _find_groups(matrix, is_above, shape.num_experts),
                key=lambda group: group.expected_share - group.share_of_pairs,
            )
        ),
        by_group=_list_by_group(counts, groups) if tally.has_groups else (),
        next_layer=_describe_next(tally, index, most_pairs),
        matrix=matrix,
    )
    # Of a large model, the counts of all layers and their matrices would fill the memory.
    counts.clear()
    return layer


def _describe_next(tally: PairTally, index: int, most_pairs: int) -> Transition | None:
    counts = tally.layers[index]
    if counts.across is None:
        return None
    fitted, others = counts.across
    following = tally.shapes[index + 1]
    whole = fitted.join(others)
    matrix = make_transition_matrix(whole)
    prediction = None
    if fitted.num_tokens:
        prediction = score_predictor(
            fit_predictor(counts.fitted, fitted),
            fitted,
            tally.sample.collect(index),
            top_k=following.top_k,
        )
    return Transition(
        layer=following.layer,
        num_tokens=whole.num_tokens,
        pairs=_list_pairs(matrix, most_pairs),
        prediction=prediction,
        matrix=matrix,
    )


def _list_by_group(counts: LayerTally, groups: Sequence[str]) -> tuple[GroupPairs, ...]:
    if len(groups) < 2:
        return ()
    return tuple(
        GroupPairs(
            group=groups[group],
            num_tokens=pairs.num_decisions,
            pairs=_list_pairs(make_group_matrix(pairs), _PAIRS_PER_GROUP),
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
            expected_share=float(matrix.expected[within].sum() / total),
            random_share=float(within.sum() / len(matrix)),
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _make_notes(
    layers: Sequence[LayerCoactivation], *, has_groups: bool, num_prompts: int
) -> Iterator[str]:
    """Yield warnings, and why numbers are None."""
    if all(layer.top_k == 1 for layer in layers):
        yield "each decision chooses one expert, so no pairs occur in a layer"
    elif any(layer.top_k == 1 for layer in layers):
        yield "layers of top-1 have no pairs"
    if num_prompts < 2:
        yield "a single prompt shows no spread between prompts: no pair is tested"
    elif num_prompts < _ENOUGH_PROMPTS:
        yield f"fewer than {_ENOUGH_PROMPTS} prompts: intervals are wide"
    if not has_groups:
        yield "pairs were not counted by group: the groups, layers and experts are too many"
    if any(layer.num_pairs and not layer.matrix.is_fitted for layer in layers):
        yield "a layer's loads could not be fitted: its pairs have no expected lift and no p"
    following = [layer.next_layer for layer in layers if layer.next_layer is not None]
    if any(each.prediction is None for each in following):
        yield (
            "some layers' experts are not predicted from the layer before: half of the prompts "
            "have none in one of the two layers"
            if num_prompts > 1
            else "the next layer's experts are not predicted: that takes two prompts"
        )
