"""Counts of pairs of experts: in one decision, or in the decisions of one token in two layers.

Each prompt is added once and whole, so that sums of squares over prompts need no memory for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.trace.decisions import NO_EXPERT

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Cells of counts by prompt and pair, decisions, and codes of pairs that are counted at a time.
_CELLS_AT_ONCE = 2**18
_DECISIONS_AT_ONCE = 2**12
_CODES_AT_ONCE = 2**18
# Time for a pair of a decision, in those for a cell.
_DENSE_COST = 6


@dataclass
class PromptMoments:
    """Sums over prompts of products of their counts, which a variance between prompts is made of.

    For prompt p, `n_ij` counts its decisions with both experts, `n_i` those with one, `t` all.

    Attributes:
        num_prompts: Prompts with a decision.
        pair_squared: Sum of `n_ij²`, for i < j. # (num_experts, num_experts)
        pair_by_first: Sum of `n_ij n_i`, for i < j. # (num_experts, num_experts)
        pair_by_second: Sum of `n_ij n_j`, for i < j. # (num_experts, num_experts)
        pair_by_decisions: Sum of `n_ij t`, for i < j. # (num_experts, num_experts)
        expert_products: Sum of `n_i n_j`. # (num_experts, num_experts)
        expert_by_decisions: Sum of `n_i t`. # (num_experts,)
        decisions_squared: Sum of `t²`.
    """

    num_prompts: int
    pair_squared: Floats
    pair_by_first: Floats
    pair_by_second: Floats
    pair_by_decisions: Floats
    expert_products: Floats
    expert_by_decisions: Floats
    decisions_squared: float = 0.0

    @classmethod
    def empty(cls, num_experts: int) -> PromptMoments:
        """Return the sums over no prompts."""
        shape = (num_experts, num_experts)
        return cls(
            num_prompts=0,
            pair_squared=np.zeros(shape),
            pair_by_first=np.zeros(shape),
            pair_by_second=np.zeros(shape),
            pair_by_decisions=np.zeros(shape),
            expert_products=np.zeros(shape),
            expert_by_decisions=np.zeros(num_experts),
        )

    def add_experts(self, loads: Floats, decisions: Floats) -> None:
        """Add what concerns single experts.

        Args:
            loads: # (num_prompts, num_experts)
            decisions: # (num_prompts,)
        """
        self.num_prompts += len(decisions)
        self.expert_products += loads.T @ loads
        self.expert_by_decisions += loads.T @ decisions
        self.decisions_squared += float(decisions @ decisions)

    def add_pairs(self, pairs: Floats, loads: Floats, decisions: Floats) -> None:
        """Add what concerns pairs.

        Args:
            pairs: # (num_prompts, num_experts, num_experts)
            loads: # (num_prompts, num_experts)
            decisions: # (num_prompts,)
        """
        self.pair_squared += np.einsum("pij,pij->ij", pairs, pairs)
        self.pair_by_first += np.einsum("pij,pi->ij", pairs, loads)
        self.pair_by_second += np.einsum("pij,pj->ij", pairs, loads)
        self.pair_by_decisions += np.einsum("pij,p->ij", pairs, decisions)


@dataclass
class LayerPairs:
    """Counts of a layer's decisions by pair of experts.

    Args:
        num_experts: Experts of the layer.
        top_k: Experts of a decision, at most.

    Attributes:
        pairs: Decisions that choose both, for i < j. # (num_experts, num_experts)
        loads: Decisions that choose the expert. # (num_experts,)
        sizes: Decisions with 0, 1, 2, … experts. # (top_k + 1,)
        moments: Sums over prompts; None if they are left out.
    """

    num_experts: int
    top_k: int
    has_moments: bool = True
    pairs: Ints = field(init=False)
    loads: Ints = field(init=False)
    sizes: Ints = field(init=False)
    moments: PromptMoments | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pairs = np.zeros((self.num_experts, self.num_experts), dtype=np.int64)
        self.loads = np.zeros(self.num_experts, dtype=np.int64)
        self.sizes = np.zeros(self.top_k + 1, dtype=np.int64)
        if self.has_moments and self.top_k > 1:
            self.moments = PromptMoments.empty(self.num_experts)

    @property
    def num_decisions(self) -> int:
        """Decisions so far, including those that ran no expert."""
        return int(self.sizes.sum())

    def add(self, experts: Ints, prompt: Ints) -> None:
        """Count decisions. Those of a prompt stand together, and all of them are given.

        Args:
            experts: Padded with `NO_EXPERT`. # (num_decisions, top_k)
            prompt: # (num_decisions,)
        """
        if not len(experts):
            return
        self.sizes += np.bincount((experts != NO_EXPERT).sum(axis=1), minlength=self.top_k + 1)
        local = number_runs(prompt)
        if self.moments is None:
            self.loads += count_ids(experts, self.num_experts)
        most = max(1, _CELLS_AT_ONCE // self.num_experts**2)
        ends = np.append(np.flatnonzero(np.diff(local)) + 1, len(local))  # (num_prompts,)
        start, first = 0, 0
        while start < len(local):
            # Whole prompts, few enough for a processor's cache, and at least one.
            last = int(np.searchsorted(ends, start + _DECISIONS_AT_ONCE, side="right")) - 1
            last = max(first, min(last, first + most - 1))
            end = int(ends[last])
            self._add_prompts(experts[start:end], local[start:end] - local[start])
            start, first = end, last + 1

    def _add_prompts(self, experts: Ints, prompt: Ints) -> None:
        num_cells = self.num_experts**2
        pair, prompt_of_pair = code_pairs(experts, prompt, self.num_experts)
        if self.moments is None:
            self.pairs += _square(np.bincount(pair, minlength=num_cells))
            return
        num_prompts = int(prompt[-1]) + 1
        # A column more, for the padding.
        wide = prompt[:, None] * (self.num_experts + 1) + experts + 1
        by_expert = np.bincount(wide.ravel(), minlength=num_prompts * (self.num_experts + 1))
        loads = by_expert.reshape(num_prompts, -1)[:, 1:]
        cell = prompt_of_pair * num_cells + pair
        by_pair = np.bincount(cell, minlength=num_prompts * num_cells)
        self.loads += loads.sum(axis=0)
        self.pairs += _square(by_pair.reshape(num_prompts, -1).sum(axis=0))
        decisions = np.bincount(prompt, minlength=num_prompts).astype(np.float64)
        self.moments.add_experts(loads.astype(np.float64), decisions)
        if num_prompts * num_cells < _DENSE_COST * len(pair):
            dense = by_pair.reshape(num_prompts, self.num_experts, -1).astype(np.float64)
            self.moments.add_pairs(dense, loads.astype(np.float64), decisions)
            return
        # A sum over prompts of n_ij x is one over the decisions with both, each counting x.
        row, column = np.divmod(pair, self.num_experts)
        place = prompt_of_pair * self.num_experts
        flat = loads.ravel()
        for total, value in (
            (self.moments.pair_squared, by_pair[cell]),
            (self.moments.pair_by_first, flat[place + row]),
            (self.moments.pair_by_second, flat[place + column]),
            (self.moments.pair_by_decisions, decisions[prompt_of_pair]),
        ):
            total += _square(np.bincount(pair, weights=value, minlength=num_cells))


@dataclass
class LayerTransitions:
    """Counts of tokens by an expert of one layer and an expert of the next.

    Args:
        num_experts: Experts of the layer.
        num_next: Experts of the next layer.

    Attributes:
        pairs: Tokens that choose both. # (num_experts, num_next)
        loads: Tokens that choose the expert. # (num_experts,)
        next_loads: The same in the next layer. # (num_next,)
        num_tokens: Tokens with a decision in both layers.
    """

    num_experts: int
    num_next: int
    pairs: Ints = field(init=False)
    loads: Ints = field(init=False)
    next_loads: Ints = field(init=False)
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.pairs = np.zeros((self.num_experts, self.num_next), dtype=np.int64)
        self.loads = np.zeros(self.num_experts, dtype=np.int64)
        self.next_loads = np.zeros(self.num_next, dtype=np.int64)

    def add(self, experts: Ints, following: Ints) -> None:
        """Count tokens.

        Args:
            experts: Padded with `NO_EXPERT`. # (num_tokens, top_k)
            following: Those of the next layer. # (num_tokens, top_k of the next layer)
        """
        self.num_tokens += len(experts)
        self.loads += count_ids(experts, self.num_experts)
        self.next_loads += count_ids(following, self.num_next)
        most = max(1, _CODES_AT_ONCE // (experts.shape[1] * following.shape[1]))
        for start in range(0, len(experts), most):
            # One row and one column more, for the padding.
            code = (experts[start : start + most, :, None] + 1) * (self.num_next + 1) + (
                following[start : start + most, None, :] + 1
            )
            counts = np.bincount(
                code.ravel(), minlength=(self.num_experts + 1) * (self.num_next + 1)
            )
            self.pairs += counts.reshape(self.num_experts + 1, -1)[1:, 1:]

    def join(self, other: LayerTransitions) -> LayerTransitions:
        """Return the counts of both."""
        joined = LayerTransitions(self.num_experts, self.num_next)
        joined.pairs = self.pairs + other.pairs
        joined.loads = self.loads + other.loads
        joined.next_loads = self.next_loads + other.next_loads
        joined.num_tokens = self.num_tokens + other.num_tokens
        return joined


def code_pairs(experts: Ints, prompt: Ints, num_experts: int) -> tuple[Ints, Ints]:
    """Return the pairs of all decisions as `i * num_experts + j` with i < j, and their prompts.

    Args:
        experts: Padded with `NO_EXPERT`. # (num_decisions, top_k)
        prompt: # (num_decisions,)

    Returns:
        # (num_pairs,), # (num_pairs,)
    """
    ordered = np.ascontiguousarray(np.sort(experts, axis=1).T)  # (top_k, num_decisions)
    first, second = np.triu_indices(len(ordered), 1)
    code = ordered[first] * num_experts
    code += ordered[second]
    prompts = np.broadcast_to(prompt, code.shape)
    # Padding is sorted to the front.
    if (ordered[0] == NO_EXPERT).any():
        is_pair = ordered[first] != NO_EXPERT
        return code[is_pair], prompts[is_pair]
    return code.ravel(), prompts.ravel()


def number_runs(values: Ints) -> Ints:
    """Return the running number of each run of equal values, from 0."""
    runs: Ints = np.cumsum(np.diff(values, prepend=values[:1]) != 0)
    return runs


def count_ids(experts: Ints, num_experts: int) -> Ints:
    """Return how often each expert occurs, without the padding."""
    return np.bincount(experts.ravel() + 1, minlength=num_experts + 1)[1:]


def _square(flat: NDArray[Any]) -> NDArray[Any]:
    side = round(len(flat) ** 0.5)
    return flat.reshape(side, side)
