"""Success of predictions on prompts that they were not fitted on, with an interval over prompts.

Let a prediction gain `g_p` hits on prompt p, which has `c_p` choices to predict. The gain is
`r = sum g / sum c`, with the variance between prompts and the degrees of freedom that `ratios` states
for prompts of any length. A few prompts may agree by chance: the variance is at least that of
independent tokens, `sum over tokens of (g - r c)² / (sum c)²`, with half a token of the largest
deviation added, so that a few equal tokens do not look certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.ratios import find_degrees_of_freedom, weigh_squares
from moetool.analysis.statistics.students_t import interpolate_quantile

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HitRate:
    """Success of a prediction that knows nothing.

    Attributes:
        hit_rate: See `Prediction`.
    """

    hit_rate: float


@dataclass(frozen=True)
class Prediction:
    """Success in predicting choices of experts, on prompts that were not used for it.

    Attributes:
        hit_rate: Share of the choices that are predicted.
        popularity: The same if the layer's most popular experts are predicted for every token.
        baseline: The same for experts drawn at random.
        gain: `hit_rate - popularity`.
        gain_low: Lower limit of the gain's 95% interval over prompts; None for a single prompt.
        gain_high: The upper limit.
        num_prompts_scored: Prompts of the half that is predicted.
        num_tokens_scored: Their tokens.
        num_tokens_fitted: Tokens of the other half.
    """

    hit_rate: float
    popularity: float
    baseline: HitRate
    gain: float
    gain_low: float | None
    gain_high: float | None
    num_prompts_scored: int
    num_tokens_scored: int
    num_tokens_fitted: int

    @property
    def is_gain_certain(self) -> bool:
        """Whether the prediction beats popular experts beyond its interval over prompts."""
        return self.gain_low is not None and self.gain_low > 0


@dataclass(frozen=True)
class ScoredTokens:
    """Hits of each token that was predicted.

    Attributes:
        hits: Choices that the prediction finds. # (num_tokens,)
        popular_hits: Choices that the most popular experts are. # (num_tokens,)
        num_chosen: Choices to predict. # (num_tokens,)
        prompt: Any number of each token's prompt. # (num_tokens,)
    """

    hits: Ints
    popular_hits: Ints
    num_chosen: Ints
    prompt: Ints


def rate_prediction(
    scored: ScoredTokens, *, chance: float, num_tokens_fitted: int
) -> Prediction | None:
    """Return the success of a prediction; None where there is nothing to predict.

    Args:
        scored: Tokens of the held-out prompts.
        chance: Hit rate of experts drawn at random.
        num_tokens_fitted: Tokens that the prediction was fitted on.
    """
    total = int(scored.num_chosen.sum())
    if not total:
        return None
    hit_rate, popularity = (int(hits.sum()) / total for hits in (scored.hits, scored.popular_hits))
    gain = hit_rate - popularity
    reach = find_reach(scored.hits - scored.popular_hits, scored.num_chosen, scored.prompt)
    return Prediction(
        hit_rate=hit_rate,
        popularity=popularity,
        baseline=HitRate(chance),
        gain=gain,
        gain_low=None if reach is None else gain - reach,
        gain_high=None if reach is None else gain + reach,
        num_prompts_scored=len(np.unique(scored.prompt[scored.num_chosen > 0])),
        num_tokens_scored=len(scored.prompt),
        num_tokens_fitted=num_tokens_fitted,
    )


def find_reach(gained: Ints, chosen: Ints, prompt: Ints) -> float | None:
    """Return half the 95% interval of `sum(gained) / sum(chosen)`; None for a single prompt.

    Args:
        gained: Of each token. # (num_tokens,)
        chosen: Tokens without choices do not count. # (num_tokens,)
        prompt: Any number of each token's prompt. # (num_tokens,)
    """
    prompts, index = np.unique(prompt[chosen > 0], return_inverse=True)
    if len(prompts) < 2:
        return None
    g, c = gained[chosen > 0].astype(np.float64), chosen[chosen > 0].astype(np.float64)
    total = float(c.sum())
    deviation = g - g.sum() / total * c
    e, h = np.bincount(index, weights=deviation), np.bincount(index, weights=c) / total
    between = float(e * e @ weigh_squares(h, h))
    independent = float(deviation @ deviation + c.max() ** 2 / 2)
    quantile = interpolate_quantile(find_degrees_of_freedom(h))
    return quantile * math.sqrt(max(between, independent)) / total
