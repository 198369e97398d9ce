"""Functions by which routers turn scores into weights, and the inference of the one that was used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# Scores may have been rounded to bfloat16 after the weights were computed from them.
_TOLERANCE = 0.02


def softmax(scores: Floats) -> Floats:
    """Return the softmax over the last axis."""
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(scores: Floats) -> Floats:
    """Return the logistic function of every score."""
    probabilities: Floats = 1 / (1 + np.exp(-scores))
    return probabilities


def sqrt_softplus(scores: Floats) -> Floats:
    """Return the square root of softplus of every score (DeepSeek-V4)."""
    roots: Floats = np.sqrt(np.logaddexp(scores, 0))
    return roots


def identity(scores: Floats) -> Floats:
    """Return the scores unchanged, because they are probabilities."""
    return scores


SCORE_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "identity": identity,
    "sqrt(softplus)": sqrt_softplus,
}


def find_function(
    functions: Mapping[str, Callable[[Floats], Floats]],
    *,
    scores: Floats,
    experts: NDArray[np.integer],
    weights: Floats,
) -> str | None:
    """Return the name of the function that best explains the weights by the scores.

    The weights of the chosen experts are the function's values, possibly divided by their sum and
    multiplied by a constant. So with the right function, weight / value is the same for all experts
    of a decision.

    Args:
        functions: Candidates by name.
        scores: (num_tokens, num_experts)
        experts: Chosen ids, (num_tokens, top_k).
        weights: (num_tokens, top_k)

    Returns:
        None if no function explains them.
    """
    spreads: dict[str, float] = {}
    for name, function in functions.items():
        values = np.take_along_axis(function(scores), experts.astype(np.int64), axis=1)
        if (values > 0).all():
            spreads[name] = _measure_spread(weights / values)
    best = min(spreads, key=lambda name: spreads[name], default=None)
    return best if best is not None and spreads[best] < _TOLERANCE else None


def is_constant(numbers: Floats | Iterable[float]) -> bool:
    """Return whether numbers are nearly equal."""
    array = np.asarray(numbers)
    return bool(np.median(np.abs(array - np.median(array))) < _TOLERANCE * abs(np.median(array)))


def _measure_spread(ratio: Floats) -> float:
    """Return how far weight / value, (num_tokens, top_k), is from being constant in each decision."""
    if ratio.shape[1] > 1:
        spread = ratio.max(axis=1) / np.maximum(ratio.min(axis=1), 1e-30) - 1
        return float(np.median(spread))
    return float(np.median(np.abs(ratio - np.median(ratio))))
