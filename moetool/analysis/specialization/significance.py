"""Permutation of the prompts' labels, and p-values that allow for looking at many cells.

The statistic of a cell, that is, of one domain and expert of a layer, is the number of assignments
beyond the expert's share of all tokens: `sum over the domain's prompts of a_i - n_i * p`, for the
a_i assignments in n_i decisions of prompt i. Under permutation of labels it is a sum over a random
sample of prompts, so its standard deviation is known: `sqrt(m (1 - m / M) s^2)` for m of M prompts
and the variance s^2 of the terms. The score is their ratio, which makes cells comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.trace.reading.counts import ExpertCounts, LayerCounts

# Permutations drawn at a time, fewer if there are many prompts: bounds the permuted counts.
_BATCH = 64
_CELLS_AT_ONCE = 2**24
# A permutation that only swaps equal prompts must count as reaching the observed value.
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class PermutationTest:
    """Results of permuting labels; all arrays by layer.

    Attributes:
        information: Mutual information of expert and domain, in nats. # (num_layers,)
        null_information: Its mean over permutations. # (num_layers,)
        p_values: Of the information. # (num_layers,)
        cell_p_values: Of each cell's score. # By layer (num_domains, num_experts)
        familywise_p_values: Of each score among the largest of all cells. # The same
    """

    information: NDArray[np.float64]
    null_information: NDArray[np.float64]
    p_values: NDArray[np.float64]
    cell_p_values: tuple[NDArray[np.float64], ...]
    familywise_p_values: tuple[NDArray[np.float64], ...]


def permute_labels(
    counts: ExpertCounts,
    label: NDArray[np.intp],
    *,
    num_domains: int,
    num_permutations: int,
    seed: int,
) -> PermutationTest:
    """Return what permuting the prompts' labels shows.

    Args:
        counts: Counted by prompt.
        label: Index of each prompt's domain. # (num_prompts,)
        num_domains: All of them; each has a prompt.
        num_permutations: At least one.
        seed: Random seed.
    """
    scales = [_find_scale(layer, label, num_domains) for layer in counts.layers]
    observed, scores = _measure(counts, label[None], num_domains, scales)
    cells = [np.abs(score[0]) for score in scores]
    rng = np.random.default_rng(seed)
    null_sum = np.zeros(len(counts.layers))
    num_reached = np.zeros(len(counts.layers), dtype=np.int64)
    cell_reached = [np.zeros(cell.shape, dtype=np.int64) for cell in cells]
    largest = np.zeros(num_permutations)
    batch = max(1, min(_BATCH, _CELLS_AT_ONCE // (num_domains * len(label))))
    for start in range(0, num_permutations, batch):
        size = min(batch, num_permutations - start)
        permuted = rng.permuted(np.tile(label, (size, 1)), axis=1)
        null, null_scores = _measure(counts, permuted, num_domains, scales)
        null_sum += null.sum(axis=0)
        num_reached += (null >= observed[0] - _TOLERANCE).sum(axis=0)
        for index, score in enumerate(null_scores):
            np.abs(score, out=score)
            cell_reached[index] += (score >= cells[index] * (1 - 1e-9)).sum(axis=0)
            np.maximum(
                largest[start : start + size],
                score.max(axis=(1, 2), initial=0),
                out=largest[start : start + size],
            )
    largest.sort()
    total = 1 + num_permutations
    return PermutationTest(
        information=observed[0],
        null_information=null_sum / max(1, num_permutations),
        p_values=(1 + num_reached) / total,
        cell_p_values=tuple((1 + reached) / total for reached in cell_reached),
        familywise_p_values=tuple(
            (1 + num_permutations - np.searchsorted(largest, cell * (1 - 1e-9))) / total
            for cell in cells
        ),
    )


def find_entropy(
    p: NDArray[np.float64], *, axis: int | tuple[int, ...] = -1
) -> NDArray[np.float64]:
    """Return `-sum(p ln p)` with `0 ln 0 = 0`, in nats."""
    log = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: NDArray[np.float64] = -(p * log).sum(axis=axis)
    return entropy


def _measure(
    counts: ExpertCounts,
    labels: NDArray[np.intp],
    num_domains: int,
    scales: list[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return the information and the scores of several labellings.

    Args:
        labels: # (num_labellings, num_prompts)
        scales: Standard deviation of each cell, by layer. # (num_domains, num_experts) each

    Returns:
        Information # (num_labellings, num_layers), and by layer the scores
        # (num_labellings, num_domains, num_experts)
    """
    # 1 for the prompts of each domain. # (num_labellings, num_domains, num_prompts)
    member = (labels[:, None, :] == np.arange(num_domains)[:, None]).astype(np.float64)
    information = np.zeros((len(labels), len(counts.layers)))
    scores = []
    for index, (layer, scale) in enumerate(zip(counts.layers, scales, strict=True)):
        joint = member @ layer.assignments  # (num_labellings, num_domains, num_experts)
        decisions = member @ layer.decisions  # (num_labellings, num_domains)
        score = joint - decisions[:, :, None] * _find_share(layer)
        scores.append(np.divide(score, scale, out=np.zeros_like(score), where=scale > 0))
        if layer.assignments.any():
            joint /= joint.sum(axis=(1, 2), keepdims=True)
            information[:, index] = (
                find_entropy(joint.sum(axis=1))
                + find_entropy(joint.sum(axis=2))
                - find_entropy(joint, axis=(1, 2))
            )
    return information, scores


def _find_share(layer: LayerCounts) -> NDArray[np.float64]:
    share: NDArray[np.float64] = layer.assignments.sum(axis=0) / max(1, layer.decisions.sum())
    return share


def _find_scale(
    layer: LayerCounts, label: NDArray[np.intp], num_domains: int
) -> NDArray[np.float64]:
    """Return the standard deviation of each cell when labels are permuted."""
    terms = layer.assignments - layer.decisions[:, None] * _find_share(layer)
    num_prompts = np.bincount(label, minlength=num_domains)[:, None]
    variance = terms.var(axis=0, ddof=1 if len(label) > 1 else 0)
    # Rounding must not turn equal prompts into different ones.
    variance[variance < 1e-18 * np.maximum(1, np.square(terms).max(axis=0))] = 0
    scale: NDArray[np.float64] = np.sqrt(num_prompts * (1 - num_prompts / len(label)) * variance)
    return scale
