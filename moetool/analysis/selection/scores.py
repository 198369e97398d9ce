"""Scores of experts, and the choice by cumulative score, as ESFT defines them.

Wang et al., Let the Expert Stick to His Last (arXiv 2407.01906), section 3.3: an expert's token
score is the share of assignments that it gets, its gate score is its mean weight over tokens; the
best experts are taken until their scores add up to p. The published scores are means over tokens
(micro); the paper's formula is a mean over samples of each sample's mean (macro).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.sums.parts import PartSums

# The published scores have these decimals, and the published choice is made from rounded scores.
DECIMALS = 4


def score_experts(
    sums: PartSums, part: int, *, by: Score, average: Average, top_k: int
) -> NDArray[np.float64] | None:
    """Return the unrounded scores of a layer's experts over a part of the prompts.

    Returns:
        None if the part has no decisions, or no weights that the score takes. # (num_experts,)
    """
    if not sums.decisions[part]:
        return None
    if average is Average.MACRO:
        totals = sums.token_shares if by is Score.TOKEN else sums.mean_weights
        return None if totals is None else totals[part] / sums.prompts[part]
    if by is Score.TOKEN:
        share: NDArray[np.float64] = sums.assignments[part] / (sums.decisions[part] * top_k)
        return share
    return None if sums.weights is None else sums.weights[part] / sums.decisions[part]


def round_scores(scores: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Return scores with the decimals of ESFT's own file, rounded as Python rounds."""
    return [round(float(score), DECIMALS) for score in scores]


def choose_experts(scores: Sequence[float], *, top_p: float) -> list[int]:
    """Return the experts that ESFT chooses, the highest score first, then the smallest id.

    Experts are taken while those taken so far score less than `top_p` together: the one that
    reaches it is the last. Sums are of the scores as given, one after the other.
    """
    order = sorted(range(len(scores)), key=lambda expert: scores[expert], reverse=True)
    chosen: list[int] = []
    total = 0.0
    for expert in order:
        if total >= top_p:
            break
        chosen.append(expert)
        total += scores[expert]
    return chosen


def choose_of_each(scores: NDArray[np.float64], *, top_p: float) -> NDArray[np.bool_]:
    """Return what `choose_experts` chooses from each row of unrounded scores.

    Args:
        scores: # (num_rows, num_experts)
        top_p: As for one row.

    Returns:
        Which experts are chosen. # (num_rows, num_experts)
    """
    rounded = np.round(scores, DECIMALS)
    order = np.argsort(-rounded, axis=1, kind="stable")
    ordered = np.take_along_axis(rounded, order, axis=1)
    before = np.zeros(scores.shape)
    before[:, 1:] = np.cumsum(ordered[:, :-1], axis=1)
    is_chosen = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(is_chosen, order, before < top_p, axis=1)
    return is_chosen


def measure_overlap(first: Collection[int], second: Collection[int]) -> float:
    """Return the share of two choices that is common to both: `2 |A ∩ B| / (|A| + |B|)`."""
    total = len(first) + len(second)
    return 2 * len(set(first) & set(second)) / total if total else 1.0
