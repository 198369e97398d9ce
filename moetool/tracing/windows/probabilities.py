"""Probabilities from a router's scores, by the function that explains its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.routing.score_functions import SCORE_FUNCTIONS, Floats, find_function
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer

# Score functions whose values lie between 0 and 1.
_PROBABILITIES = ("softmax", "sigmoid", "identity")


@dataclass(frozen=True)
class ScoreFunction:
    """Turns a router's scores into probabilities.

    Attributes:
        name: `softmax`, `sigmoid` or `identity`.
    """

    name: str

    def apply(self, scores: Floats) -> NDArray[np.float16]:
        """Return the probabilities of `(num_tokens, num_experts)` scores, in the same shape."""
        return SCORE_FUNCTIONS[self.name](scores).astype(np.float16)


def find_score_function(layer: RecordedLayer) -> ScoreFunction:
    """Return the function under which the recorded weights follow from the router's scores.

    Raises:
        UntraceableError: The router's scores were not seen, or no known function explains them.
    """
    experts_path, scores = layer.layer.experts_path, layer.scores
    if scores is None:
        raise UntraceableError(
            f"The router of {experts_path} returns no score for every expert.",
            hint="Leave out --probabilities.",
        )
    name = find_function(
        SCORE_FUNCTIONS, scores=scores, experts=layer.experts, weights=layer.weights
    )
    if name in _PROBABILITIES:
        return ScoreFunction(name)
    raise UntraceableError(
        f"No known function from scores to probabilities explains the router of {experts_path}.",
        hint="Leave out --probabilities.",
        facts=[
            f"tried: {', '.join(_PROBABILITIES)}",
            *([f"seen: {name}, whose values are not probabilities"] if name else []),
        ],
    )
