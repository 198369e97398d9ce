"""Prediction of the next layer's experts from a layer's, fitted and scored on different prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.pair_counts import LayerPairs, LayerTransitions
from moetool.analysis.statistics.held_out import find_reach
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
        random: Fetching a random set: `num_fetched / num_experts`.
    """

    num_fetched: int
    hit_rate: float
    popularity: float
    random: float


@dataclass(frozen=True)
class Prediction:
    """Success in predicting the experts of a token in the next layer.

    Attributes:
        hit_rate: Share of the next layer's choices among the top-k that are predicted.
        popularity: The same if the layer's most popular experts are predicted for every token.
        random: The same for a random set: `top_k / num_experts`.
        gain: `hit_rate - popularity`.
        gain_low: Lower limit of the gain's 95% interval over prompts; None for a single prompt.
        gain_high: The upper limit.
        num_prompts_scored: Prompts of the half that the predictor was not fitted on.
        num_tokens_scored: Their tokens.
        num_tokens_fitted: Tokens of the other half.
        prefetch: The same for larger sets, the first of which is top-k.
    """

    hit_rate: float
    popularity: float
    random: float
    gain: float
    gain_low: float | None
    gain_high: float | None
    num_prompts_scored: int
    num_tokens_scored: int
    num_tokens_fitted: int
    prefetch: tuple[Prefetch, ...]


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
) -> Prediction | None:
    """Return the success of a predictor; None where no token ran an expert in the next layer.

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
    by_prompt = np.zeros((2, int(prompt.max(initial=-1)) + 1))
    num_chosen = np.zeros(by_prompt.shape[1])
    hits = np.zeros((2, len(sizes)), dtype=np.int64)
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
        for column, size in enumerate(sizes):
            hits[:, column] += (places < size).sum(axis=(1, 2))
        hit = (places < sizes[0]).sum(axis=2)
        for row in range(2):
            np.add.at(by_prompt[row], prompt[part], hit[row])
        np.add.at(num_chosen, prompt[part], ran.sum(axis=1))
    total = num_chosen.sum()
    if not total:
        return None
    rates: Floats = hits / float(total)
    gain = float(rates[0, 0] - rates[1, 0])
    is_there = num_chosen > 0
    reach = find_reach(by_prompt[0, is_there] - by_prompt[1, is_there], num_chosen[is_there])
    return Prediction(
        hit_rate=float(rates[0, 0]),
        popularity=float(rates[1, 0]),
        random=sizes[0] / num_next,
        gain=gain,
        gain_low=None if reach is None else gain - reach,
        gain_high=None if reach is None else gain + reach,
        num_prompts_scored=int(is_there.sum()),
        num_tokens_scored=len(experts),
        num_tokens_fitted=across.num_tokens,
        prefetch=_list_prefetch(sizes, rates, num_next),
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


def _list_prefetch(sizes: Sequence[int], rates: Floats, num_next: int) -> tuple[Prefetch, ...]:
    return tuple(
        Prefetch(
            num_fetched=size,
            hit_rate=float(rates[0, index]),
            popularity=float(rates[1, index]),
            random=size / num_next,
        )
        for index, size in enumerate(sizes)
    )
