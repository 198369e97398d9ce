"""From a router's scores to its probabilities, by what explains the weights it gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UntraceableError
from moetool.tracing.recording import RecordedLayer

Floats = NDArray[np.floating]

# Scores may have been rounded to bfloat16 after the weights were computed from them.
_TOLERANCE = 0.02


def _softmax(scores: Floats) -> Floats:
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def _sigmoid(scores: Floats) -> Floats:
    probabilities: Floats = 1 / (1 + np.exp(-scores))
    return probabilities


def _identity(scores: Floats) -> Floats:
    return scores


_SCORE_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "identity": _identity,
}


@dataclass(frozen=True)
class ScoreFunction:
    """What turns a router's scores into probabilities: `softmax`, `sigmoid` or `identity`."""

    name: str

    def apply(self, scores: Floats) -> NDArray[np.float16]:
        """Return the probabilities of `(num_tokens, num_experts)` scores, in the same shape."""
        return _SCORE_FUNCTIONS[self.name](scores).astype(np.float16)


def find_score_function(layer: RecordedLayer) -> ScoreFunction:
    """Return the function under which the recorded weights follow from the router's scores.

    A router gives the chosen experts their probabilities, possibly divided by their sum and
    multiplied by a constant. So under the right function weight / probability is the same for
    all experts of a decision.

    Raises:
        UntraceableError: The router's scores were not seen, or no known function explains them.
    """
    place, scores = layer.place, layer.scores
    if scores is None:
        raise UntraceableError(
            f"The router of {place.experts_path} returns no score for every expert.",
            hint="Trace without --probabilities.",
        )
    for name, function in _SCORE_FUNCTIONS.items():
        probabilities = function(scores)
        chosen = np.take_along_axis(probabilities, layer.experts.astype(np.int64), axis=1)
        if _explains(chosen, layer.weights):
            return ScoreFunction(name)
    raise UntraceableError(
        f"Can't tell how the router of {place.experts_path} turns scores into probabilities.",
        hint="Trace without --probabilities.",
        facts=[f"tried: {', '.join(_SCORE_FUNCTIONS)}"],
    )


def _explains(chosen: Floats, weights: Floats) -> bool:
    """Return whether the weights are the chosen probabilities, up to one factor a decision."""
    if (chosen <= 0).any() or (chosen > 1).any():
        return False
    ratio = weights / chosen  # (num_tokens, top_k)
    if ratio.shape[1] > 1:
        spread = ratio.max(axis=1) / np.maximum(ratio.min(axis=1), 1e-30) - 1
        return bool(np.median(spread) < _TOLERANCE)
    return bool(np.median(np.abs(ratio - np.median(ratio))) < _TOLERANCE)
