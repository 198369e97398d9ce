"""Success of predictions on prompts that they were not fitted on, with an interval over prompts.

Let a prediction gain `g_p` hits on prompt p, which has `c_p` choices to predict. The gain is
`r = sum g / sum c`. Its variance between prompts is, to first order,

    sum of e_p² / (1 - h_p) / (sum c)²,   e_p = g_p - r c_p,   h_p = c_p / sum c

which has no bias if the variance of `g_p` grows with `c_p`, however unequal the prompts are
(MacKinnon and White 1985, J. Econometrics 29:305, HC2). Student's t has the degrees of freedom that
such a variance is worth (Bell and McCaffrey 2002, Survey Methodology 28:169):

    1 / (sum of h_p² + sum over p != q of h_p² h_q² / ((1 - h_p) (1 - h_q)))

from 1 to `prompts - 1`. A few prompts may agree by chance: the variance is at least that of
independent tokens, `sum over tokens of (g - r c)² / (sum c)²`, with half a token of the largest
deviation added, so that a few equal tokens do not look certain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.students_t import find_quantile

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    between = float((e * e / (1 - h)).sum())
    independent = float(deviation @ deviation + c.max() ** 2 / 2)
    quantile = _find_quantile(_find_degrees_of_freedom(h))
    return quantile * math.sqrt(max(between, independent)) / total


def _find_degrees_of_freedom(h: Floats) -> float:
    """Return what the variance is worth, see above.

    Args:
        h: Share of each prompt, at least two. # (num_prompts,)
    """
    w = h * h / (1 - h)
    return 1 / float((h * h).sum() + w.sum() ** 2 - (w * w).sum())


def _find_quantile(degrees_of_freedom: float) -> float:
    """Return Student's quantile at any degrees of freedom from 1: exact or up to 3 % too large.

    Its logarithm is interpolated between whole numbers, over their reciprocals.
    """
    # Rounding must not take equal prompts below a whole number.
    df = max(1.0, degrees_of_freedom * (1 + 1e-9))
    whole = int(df)
    weight = (1 / whole - 1 / df) * whole * (whole + 1)
    low, high = find_quantile(whole), find_quantile(whole + 1)
    return low * math.exp(weight * math.log(high / low))
