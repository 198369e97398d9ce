"""A domain's use of each expert next to the use of it by the same token ids elsewhere.

For the tokens of a domain whose ids occur in other domains as well, let each occurrence choose
experts as the same id does in other domains: that gives, in place of the domain's own assignments,
`sum over ids x of n_xd (a_xe - a_xde) / (n_x - n_xd)`. If routing depends on the token id alone,
both have the same expectation. Their difference is a sum over prompts i of

    u_i = sum over x of c_xi (a_xie - n_xi p_xe),   c = 1 in the domain, else -n_xd / (n_x - n_xd)

for any p_xe, because the weights of each id add up to zero; here it is the share of all prompts. The
score is the sum over its standard error, `sum u_i / sqrt(sum u_i^2)`. In its null, all u_i of a
prompt change sign together, so that prompts may deviate as a whole. Deviations from a share that
includes them are too small by `1 - n_xi / n_x`; dividing by that corrects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Random signs drawn at a time.
_BATCH = 256


@dataclass(frozen=True)
class SharedUse:
    """Use of one layer's experts by the tokens that domains share.

    Attributes:
        share: Of the domain's shared tokens, those that choose the expert; NaN for a domain without
            any. # (num_domains, num_experts)
        share_elsewhere: The same if each occurrence chose as its id does in other domains.
        scores: Difference of the two over its standard error; 0 where that is 0.
        terms: The part of each prompt in each score. # (num_prompts, num_domains * num_experts)
    """

    share: NDArray[np.float64]
    share_elsewhere: NDArray[np.float64]
    scores: NDArray[np.float64]
    terms: NDArray[np.float32]


@dataclass(frozen=True)
class SharedCells:
    """Cells, that is, one token id in one prompt each, of ids that several domains use.

    Attributes:
        token: Ascending. # (num_cells,)
        domain: # (num_cells,)
        prompt: # (num_cells,)
        size: Occurrences. # (num_cells,)
    """

    token: NDArray[np.intp]
    domain: NDArray[np.intp]
    prompt: NDArray[np.intp]
    size: NDArray[np.float64]


def measure_shared_use(
    counts: NDArray[np.float64], cells: SharedCells, *, num_domains: int, num_prompts: int
) -> SharedUse:
    """Return the use of experts by shared tokens, in their domain and elsewhere.

    Args:
        counts: Assignments of each cell. # (num_cells, num_experts)
    """
    size, domain = cells.size, cells.domain
    is_start = np.diff(cells.token, prepend=-1) != 0
    starts, row = np.flatnonzero(is_start), np.cumsum(is_start) - 1
    size_of_token = np.add.reduceat(size, starts)  # (num_ids,)
    size_of_domain = np.zeros((len(starts), num_domains))
    np.add.at(size_of_domain, (row, domain), size)
    others = size_of_token[:, None] - size_of_domain
    ratio = np.divide(size_of_domain, others, out=np.zeros_like(others), where=others > 0)
    mean = np.add.reduceat(counts, starts, axis=0) / size_of_token[:, None]
    deviation = counts - size[:, None] * mean[row]
    deviation /= (1 - size / size_of_token[row])[:, None]
    order = np.argsort(cells.prompt, kind="stable")
    prompt_starts = np.flatnonzero(np.diff(cells.prompt[order], prepend=-1))
    prompts = cells.prompt[order][prompt_starts]
    num_experts = counts.shape[1]
    share = np.full((num_domains, num_experts), np.nan)
    elsewhere, scores = share.copy(), np.zeros_like(share)
    terms = np.zeros((num_prompts, num_domains, num_experts), dtype=np.float32)
    for one in np.unique(domain):
        is_mine = domain == one
        total = size[is_mine].sum()
        share[one] = counts[is_mine].sum(axis=0) / total
        weight = np.where(is_mine, 0.0, ratio[row, one])
        elsewhere[one] = weight @ counts / total
        weighted = deviation * np.where(is_mine, 1.0, -weight)[:, None]
        parts = np.add.reduceat(weighted[order], prompt_starts, axis=0)
        error = np.sqrt(np.square(parts).sum(axis=0))
        # Rounding must not make a difference of equal cells.
        is_known = error > 1e-9 * total
        difference = (share[one] - elsewhere[one]) * total
        scores[one] = np.divide(difference, error, out=np.zeros(num_experts), where=is_known)
        terms[prompts, one] = np.divide(parts, error, out=np.zeros_like(parts), where=is_known)
    return SharedUse(share, elsewhere, scores, terms.reshape(num_prompts, -1))


def find_familywise_p_values(
    uses: Sequence[SharedUse], *, num_permutations: int, seed: int
) -> list[NDArray[np.float64]]:
    """Return the p-value of each absolute score among the largest of all layers.

    Args:
        uses: Of each layer.
        num_permutations: Draws of random signs.
        seed: Random seed.

    Returns:
        By layer. # (num_domains, num_experts) each
    """
    largest = np.zeros(num_permutations)
    rng = np.random.default_rng([seed, 8])
    num_prompts = max((len(use.terms) for use in uses), default=0)
    for start in range(0, num_permutations, _BATCH):
        size = min(_BATCH, num_permutations - start)
        # The signs of a prompt are the same in every layer.
        signs = (rng.integers(0, 2, size=(size, num_prompts)) * 2 - 1).astype(np.float32)
        for use in uses:
            drawn = np.abs(signs[:, : len(use.terms)] @ use.terms).max(axis=1, initial=0)
            largest[start : start + size] = np.maximum(largest[start : start + size], drawn)
    largest.sort()
    # Terms are rounded to single precision.
    reached = [
        num_permutations - np.searchsorted(largest, np.abs(use.scores) * (1 - 1e-5)) for use in uses
    ]
    return [(1 + each) / (1 + num_permutations) for each in reached]
