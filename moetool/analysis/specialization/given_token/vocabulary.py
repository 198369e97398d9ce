"""Specialization that is left when the token id is known.

Domains differ in vocabulary, so a router that looks at the token alone "specializes" by domain. Two
figures compare the same token id in several domains. The unit is the cell: one token id in one
prompt, with `n` occurrences and `a_e` assignments to expert e.

**Information.** The mutual information of expert and domain given the token id, as counted, is
biased upwards: most ids are rare. Its bias is that of domains permuted among the cells of one token
id. Cells of frequent use are less noisy than others, so only cells of about the same n change
places: within a power of two. The conditional information is a sum over token ids, so its mean
needs no more than that, even if all tokens of a prompt deviate together.

**Overlap.** The p-value does have to respect that: it is that of a statistic whose null can be
drawn by prompt. Let `y_i = a_i / (n_i sqrt(k))` in the cells of one token id, m_d of them in domain
d. The difference between the mean of `y_i . y_j` within domains and across domains, each pair of
domains weighted by `m_d m_d'`, is an unbiased estimate of half the squared distance of the
domains' means (an energy distance; Székely and Rizzo 2013, J. Stat. Plan. Inference 143:1249). It is

    sum over i != j of K_ij y_i . y_j,    K_ij = (m - m_d) / (m_d - 1) within domain d, else -1

and as each row of K sums to zero, the common mean of all cells cancels. If routing depends on the
token id and not on the domain, each term then has the mean 0, and keeps its distribution when all
deviations of a prompt change sign together (a wild bootstrap of a degenerate U-statistic; Dehling
and Mikosch 1994, J. Multivar. Anal. 51:392). Deviations are from the token id's mean, which makes
them too small by `1 - 1 / m`; dividing by that corrects it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.given_token.elsewhere import (
    SharedCells,
    SharedUse,
    measure_shared_use,
)

# Permutations behind the mean of the information: fewer where each averages over more cells.
_MOST_DRAWS, _LEAST_DRAWS = 16, 4
_CELLS_DRAWN = 2**18
# Random signs drawn at a time.
_BATCH = 256


@dataclass(frozen=True)
class ConditionalSpecialization:
    """Specialization of one layer among tokens that domains share.

    Attributes:
        shared_share: Share of the tokens whose id occurs in at least two domains.
        information_nats: Mutual information of expert and domain given the token id, as counted.
        null_nats: Its mean under permutation.
        domain_entropy_nats: `H(domain | token id)` of these tokens.
        same_domain_overlap: Mean share of experts in common; None where no token id occurs in two
            prompts of each of two domains, like the following fields.
        other_domain_overlap: The same for prompts of two domains.
        same_by_chance: The first under a uniform random router that runs as many experts.
        other_by_chance: The second.
        p_value: Of the difference.
        use: Use of experts by each domain's shared tokens.
    """

    shared_share: float
    information_nats: float
    null_nats: float
    domain_entropy_nats: float
    same_domain_overlap: float | None
    other_domain_overlap: float | None
    same_by_chance: float | None
    other_by_chance: float | None
    p_value: float | None
    use: SharedUse


@dataclass(frozen=True)
class _Overlaps:
    """Mean shares of experts in common, as in `ConditionalSpecialization`."""

    same: float | None = None
    other: float | None = None
    same_by_chance: float | None = None
    other_by_chance: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class _Block:
    """The cells of one token id that take part in the comparison of overlaps.

    Attributes:
        cells: Index of each cell. # (m,)
        prompt: # (m,)
        kernel: K, scaled to weights. # (m, m)
        is_same: Whether two cells are of one domain. # (m, m)
        weight: Occurrences of the token id.
    """

    cells: NDArray[np.intp]
    prompt: NDArray[np.intp]
    kernel: NDArray[np.float64]
    is_same: NDArray[np.bool_]
    weight: float


class SharedTokens:
    """Tokens of several prompts, sorted into cells, ready to compare the experts of any layer.

    Args:
        token_id: # (num_tokens,)
        prompt: Index of each token's prompt. # (num_tokens,)
        label: Index of each prompt's domain. # (num_prompts,)
        num_permutations: Random signs behind the p-value.
        seed: Random seed.
    """

    def __init__(
        self,
        token_id: NDArray[np.int64],
        prompt: NDArray[np.int64],
        label: NDArray[np.intp],
        *,
        num_permutations: int,
        seed: int,
    ) -> None:
        self._seed, self._num_permutations = seed, num_permutations
        self._num_prompts = len(label)
        width = max(1, len(label))
        ids, index = np.unique(token_id, return_inverse=True)
        keys, self._cell_of_token = np.unique(index * width + prompt, return_inverse=True)
        token, self._prompt = np.divmod(keys, width)
        domain = label[self._prompt]
        # Occurrences in each cell.
        self._size = np.bincount(self._cell_of_token, minlength=len(keys)).astype(np.float64)
        self._num_domains = int(label.max(initial=0)) + 1
        present = np.zeros((len(ids), self._num_domains), dtype=np.int64)
        np.add.at(present, (token, domain), 1)
        # Cells of token ids that at least two domains use.
        (self._shared,) = np.nonzero(((present > 0).sum(axis=1) > 1)[token])
        self._token, self._domain = token[self._shared], domain[self._shared]
        self._prepare_draws()
        self._blocks = list(_find_blocks(token, domain, self._prompt, present, self._size))

    def _prepare_draws(self) -> None:
        """Permute the domains of shared cells, and sort each draw by token id and domain."""
        rng = np.random.default_rng([self._seed, 3])
        size_class = np.ceil(np.log2(self._size[self._shared])).astype(np.int64)
        stratum = self._token * (int(size_class.max(initial=0)) + 1) + size_class
        in_order = np.argsort(stratum, kind="stable")
        labellings = [self._domain]
        most = _CELLS_DRAWN // max(1, len(stratum))
        for _ in range(min(_MOST_DRAWS, max(_LEAST_DRAWS, most))):
            drawn = np.empty_like(self._domain)
            drawn[in_order] = self._domain[np.lexsort((rng.random(len(stratum)), stratum))]
            labellings.append(drawn)
        width = int(self._domain.max(initial=0)) + 1
        # For each labelling, cells sorted into groups of one token id and domain.
        self._groupings = []
        for labelling in labellings:
            key = self._token * width + labelling
            order = np.argsort(key, kind="stable")
            self._groupings.append((order, np.flatnonzero(np.diff(key[order], prepend=-1))))
        self._token_starts = np.flatnonzero(np.diff(self._token, prepend=-1))

    def compare(
        self, experts: NDArray[np.integer], *, num_experts: int
    ) -> ConditionalSpecialization | None:
        """Return the specialization of one layer; None if domains share no token.

        Args:
            experts: Of each token; negative where fewer ran. # (num_tokens, top_k)
            num_experts: Larger than each id.
        """
        if not len(self._shared):
            return None
        top_k = experts.shape[1]
        chosen = experts.ravel()
        key = np.repeat(self._cell_of_token, top_k) * num_experts + chosen
        counts = np.bincount(key[chosen >= 0], minlength=len(self._size) * num_experts)
        counts = counts.reshape(len(self._size), num_experts)  # (num_cells, num_experts)
        shared = counts[self._shared].astype(np.float64)
        if not shared.any():
            return None
        observed, *null = self._find_information(shared)
        overlaps = self._compare_overlaps(counts, top_k)
        return ConditionalSpecialization(
            shared_share=float(self._size[self._shared].sum() / self._size.sum()),
            information_nats=observed,
            null_nats=float(np.mean(null)),
            domain_entropy_nats=self._find_domain_entropy(),
            same_domain_overlap=overlaps.same,
            other_domain_overlap=overlaps.other,
            same_by_chance=overlaps.same_by_chance,
            other_by_chance=overlaps.other_by_chance,
            p_value=overlaps.p_value,
            use=measure_shared_use(
                shared,
                SharedCells(
                    token=self._token,
                    domain=self._domain,
                    prompt=self._prompt[self._shared],
                    size=self._size[self._shared],
                ),
                num_domains=self._num_domains,
                num_prompts=self._num_prompts,
            ),
        )

    def _find_information(self, shared: NDArray[np.float64]) -> list[float]:
        """Return the conditional information of each labelling, the observed one first."""
        by_token = np.add.reduceat(shared, self._token_starts, axis=0)
        fixed = _sum_logs(by_token.sum(axis=1)) - _sum_logs(by_token)
        values = []
        for order, starts in self._groupings:
            joint = np.add.reduceat(shared[order], starts, axis=0)
            values.append(
                float((_sum_logs(joint) - _sum_logs(joint.sum(axis=1)) + fixed) / shared.sum())
            )
        return values

    def _find_domain_entropy(self) -> float:
        """Return the entropy of the domain of a shared token whose id is known."""
        order, starts = self._groupings[0]
        size = self._size[self._shared]
        joint = np.add.reduceat(size[order], starts)
        by_token = np.add.reduceat(size, self._token_starts)
        return float((_sum_logs(by_token) - _sum_logs(joint)) / size.sum())

    def _compare_overlaps(self, counts: NDArray[np.int64], top_k: int) -> _Overlaps:
        """Return the mean overlap within domains, across them, and the p-value of the difference."""
        weight = sum(block.weight for block in self._blocks)
        if not weight:
            return _Overlaps()
        same = other = same_by_chance = other_by_chance = 0.0
        # How much two prompts agree beyond the mean of their tokens. # (num_prompts, num_prompts)
        agreement = np.zeros((self._num_prompts, self._num_prompts))
        for block in self._blocks:
            use = counts[block.cells] / (self._size[block.cells, None] * np.sqrt(top_k))
            weighted = (use @ use.T) * block.kernel
            within = float(weighted[block.is_same].sum())
            same += within
            other += within - float(weighted.sum())
            # Spread evenly over the experts.
            even = use.sum(axis=1) / np.sqrt(use.shape[1])
            weighted = np.outer(even, even) * block.kernel
            within = float(weighted[block.is_same].sum())
            same_by_chance += within
            other_by_chance += within - float(weighted.sum())
            deviation = (use - use.mean(axis=0)) / (1 - 1 / len(use))
            agreement[np.ix_(block.prompt, block.prompt)] += (
                deviation @ deviation.T
            ) * block.kernel
        return _Overlaps(
            same=same / weight,
            other=other / weight,
            same_by_chance=same_by_chance / weight,
            other_by_chance=other_by_chance / weight,
            p_value=self._draw_signs(agreement, same - other),
        )

    def _draw_signs(self, agreement: NDArray[np.float64], observed: float) -> float:
        # The same signs in every layer.
        rng = np.random.default_rng([self._seed, 4])
        num_reached = 0
        tolerance = 1e-12 * max(1.0, abs(observed))
        for start in range(0, self._num_permutations, _BATCH):
            size = min(_BATCH, self._num_permutations - start)
            signs = rng.integers(0, 2, size=(size, self._num_prompts)) * 2.0 - 1
            drawn = ((signs @ agreement) * signs).sum(axis=1)
            num_reached += int((drawn >= observed - tolerance).sum())
        return (1 + num_reached) / (1 + self._num_permutations)


def _find_blocks(
    token: NDArray[np.intp],
    domain: NDArray[np.intp],
    prompt: NDArray[np.intp],
    present: NDArray[np.int64],
    size: NDArray[np.float64],
) -> list[_Block]:
    """Return the token ids that two prompts of each of two domains use.

    Args:
        token: Index of each cell's token id, ascending. # (num_cells,)
        present: Prompts by token id and domain. # (num_ids, num_domains)
        size: Occurrences in each cell. # (num_cells,)
    """
    takes_part = present[token, domain] > 1
    takes_part &= ((present > 1).sum(axis=1) > 1)[token]
    (cells,) = np.nonzero(takes_part)
    blocks = []
    for mine in np.split(cells, np.flatnonzero(np.diff(token[cells])) + 1):
        if not len(mine):
            continue
        of_domain = domain[mine]
        number = np.bincount(of_domain).astype(np.float64)  # m_d
        total = len(mine)
        is_same = of_domain[:, None] == of_domain
        within = ((total - number) / np.maximum(number - 1, 1))[of_domain]
        kernel = np.where(is_same, within[:, None], -1.0)
        np.fill_diagonal(kernel, 0)
        weight = float(size[mine].sum())
        # The weights of all pairs of domains add up to the token id's occurrences.
        kernel *= weight / (total**2 - np.square(number).sum())
        blocks.append(_Block(mine, prompt[mine], kernel, is_same, weight))
    return blocks


def _sum_logs(counts: NDArray[np.float64]) -> float:
    """Return the sum of `n ln n`, with `0 ln 0 = 0`."""
    positive = counts[counts > 0]
    return float((positive * np.log(positive)).sum())
