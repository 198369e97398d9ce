"""Prediction of the next layer's experts from a layer's, fitted and scored on different prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.pair_counts import LayerPairs, LayerTransitions
from moetool.analysis.statistics.prediction import (
    HitRate,
    Prediction,
    ScoredTokens,
    rate_prediction,
)
from moetool.trace.decisions import NO_EXPERT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Added to each expert's count: a weak prior that experts predict nothing.
_RIDGE = 1.0
# Multiples of the next layer's top-k that are fetched.
_MULTIPLES = (1, 2, 4)
_TOKENS_AT_ONCE = 1_024
# Of scores, which are between 0 and 1: above what rounding adds to them.
_TIE = 1e-9


@dataclass(frozen=True)
class Prefetch:
    """Share of the next layer's experts that are among those fetched ahead.

    Attributes:
        num_fetched: Experts fetched for each token.
        hit_rate: With the predictor.
        popularity: Fetching the experts that are chosen most, the same for every token.
        baseline: Fetching a random set: `num_fetched / num_experts`.
    """

    num_fetched: int
    hit_rate: float
    popularity: float
    baseline: HitRate


def fit_predictor(within: LayerPairs, across: LayerTransitions) -> Floats:
    """Return the weights of the best linear predictor of the next layer's experts.

    Ridge regression of the next layer's choices, as zeros and ones, on the layer's (Hoerl and
    Kennard 1970). Counts of pairs in the layer and across the layers are all that it needs.

    Args:
        within: Pairs of the layer.
        across: Pairs of the layer and the next, of the same tokens.

    Returns:
        # (num_experts, num_next)
    """
    products = (within.pairs + within.pairs.T).astype(np.float64)
    np.fill_diagonal(products, within.loads + _RIDGE)
    return np.linalg.solve(products, across.pairs.astype(np.float64)).astype(np.float64)


def score_predictor(
    weights: Floats, across: LayerTransitions, scored: tuple[Ints, Ints, Ints], *, top_k: int
) -> tuple[Prediction, tuple[Prefetch, ...]] | None:
    """Return the success of a predictor with as many experts as the next layer chooses, and more.

    None where no token ran an expert in the next layer.

    Args:
        weights: See `fit_predictor`. # (num_experts, num_next)
        across: Counts of the half that it was fitted on.
        scored: Experts of the other half's tokens in the layer and in the next, and their prompts.
        top_k: Experts that the next layer chooses, at most.
    """
    experts, following, prompt = scored
    num_next = across.num_next
    sizes = sorted({min(num_next, multiple * top_k) for multiple in _MULTIPLES})
    popular = np.argsort(-across.next_loads, kind="stable")
    place = np.empty(num_next, dtype=np.int64)
    place[popular] = np.arange(num_next)
    # Of the predictor and of popularity, by size and token.
    hits = np.zeros((2, len(sizes), len(experts)), dtype=np.int64)
    # The most popular first, and a row of zeros for the padding, which has the index -1.
    padded = np.vstack([weights[:, popular], np.zeros(num_next)])
    # Of equal scores, that of the more popular expert is the larger.
    padded -= _TIE * np.arange(num_next)
    for start in range(0, len(experts), _TOKENS_AT_ONCE):
        part = slice(start, start + _TOKENS_AT_ONCE)
        scores = padded[experts[part, 0]]
        for column in range(1, experts.shape[1]):
            scores += padded[experts[part, column]]
        ran = following[part] != NO_EXPERT
        popularity = place[np.where(ran, following[part], 0)]
        places = np.stack([_find_places(scores, popularity), popularity])
        places[:, ~ran] = num_next  # (2, num_tokens, top_k)
        for number, size in enumerate(sizes):
            hits[:, number, part] = (places < size).sum(axis=2)
    num_chosen = (following != NO_EXPERT).sum(axis=1)
    prediction = rate_prediction(
        ScoredTokens(hits[0, 0], hits[1, 0], num_chosen, prompt),
        chance=sizes[0] / num_next,
        num_tokens_fitted=across.num_tokens,
    )
    if prediction is None:
        return None
    total = int(num_chosen.sum())
    return prediction, tuple(
        Prefetch(
            num_fetched=size,
            hit_rate=int(hits[0, number].sum()) / total,
            popularity=int(hits[1, number].sum()) / total,
            baseline=HitRate(size / num_next),
        )
        for number, size in enumerate(sizes)
    )


def _find_places(scores: Floats, wanted: Ints) -> Ints:
    """Return the place of columns in the order of their rows' scores, the largest first.

    Args:
        scores: # (num_tokens, num_experts)
        wanted: Columns. # (num_tokens, top_k)
    """
    places = np.empty_like(wanted)
    for rank in range(wanted.shape[1]):
        own = np.take_along_axis(scores, wanted[:, rank, None], axis=1)
        places[:, rank] = np.count_nonzero(scores > own, axis=1)
    return places
