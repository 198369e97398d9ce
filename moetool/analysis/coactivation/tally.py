"""Counts of pairs of all layers, collected window by window."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.coactivation.pair_counts import LayerPairs, LayerTransitions
from moetool.analysis.statistics.halves import hash_prompts, split_prompts
from moetool.analysis.statistics.held_out import HeldOutSample
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow, LayerChoices
from moetool.wording import format_bytes, number_of

Ints = NDArray[np.int64]

# Of all counts, eight bytes each.
_MOST_CELLS = 2**26
# Matrices of a layer: counts, five sums over prompts, the half to fit on, and two across layers.
_MATRICES_PER_LAYER = 9
# Matrices of a group of tokens: counts, and five sums over prompts if there is memory for them.
_MATRICES_PER_GROUP = 6


@dataclass(frozen=True)
class LayerShape:
    """The numbers of a routed layer that its counts depend on."""

    of: RoutedLayer

    @property
    def stack(self) -> str:
        """Return the layer's stack, as in the trace's column."""
        return self.of.stack

    @property
    def layer(self) -> int:
        """Return the layer's number, as in the trace's column."""
        return self.of.layer

    @property
    def num_experts(self) -> int:
        """Return the number of experts, including identity experts."""
        return self.of.num_experts + self.of.num_identity_experts

    @property
    def top_k(self) -> int:
        """Return the experts of a decision, at most."""
        return self.of.top_k

    def count_pairs(self, *, has_moments: bool = False) -> LayerPairs:
        """Return counts of the layer's pairs, without decisions so far."""
        return LayerPairs(self.num_experts, self.top_k, has_moments=has_moments)

    def check(self, choices: LayerChoices) -> None:
        """Refuse rows that an unchecked reader lets through and no matrix has a place for."""
        if choices.experts.max(initial=0) >= self.num_experts:
            raise InputError(
                f"Layer {self.layer} of stack '{printable(self.stack, max_length=60)}' has an "
                f"expert {choices.experts.max()}, but {self.num_experts} experts.",
                hint="State the right number with --num-experts.",
            )
        if choices.experts.shape[1] > self.top_k:
            raise InputError(
                f"A decision of layer {self.layer} has {choices.experts.shape[1]} experts, more "
                f"than its top-k of {self.top_k}.",
                hint="Remove rows that occur twice; see docs/traces/trace-format.md.",
            )


@dataclass
class LayerTally:
    """Counts of one layer.

    Attributes:
        pairs: Over all prompts.
        fitted: Over the tokens of the first half of the prompts that the next layer has, too.
        by_group: By index of the group; empty if groups are left out.
        across: Pairs with the next layer, of the first half and of the second.
    """

    pairs: LayerPairs
    fitted: LayerPairs
    by_group: dict[int, LayerPairs] = field(default_factory=dict)
    across: tuple[LayerTransitions, LayerTransitions] | None = None

    def clear(self) -> None:
        """Give the memory of the sums and matrices back."""
        self.pairs.moments, self.across = None, None
        self.by_group.clear()


class PairTally:
    """Counts of all layers of a trace.

    Attributes:
        shapes: In the order of stack and layer.
        layers: In the same order.
        sample: Decisions of prompts of the second half.
        has_groups: Whether pairs were counted by group, too: the memory is enough.
        has_group_moments: Whether sums over prompts were taken by group, too.

    Args:
        reader: The trace.
    """

    def __init__(self, reader: DecisionReader) -> None:
        self._reader = reader
        self._hashes = hash_prompts(reader.prompts)
        self._is_fitted = ~split_prompts(reader.prompts)
        self.sample = HeldOutSample()
        self.shapes = [LayerShape(layer) for layer in reader.layers]
        num_cells = sum(shape.num_experts**2 for shape in self.shapes)
        if num_cells * _MATRICES_PER_LAYER > _MOST_CELLS:
            raise InputError(
                f"Counting pairs in {number_of(len(self.shapes), 'layer')} takes "
                f"{format_bytes(num_cells * _MATRICES_PER_LAYER * 8)} of memory.",
                hint="Analyse fewer layers at a time: --layers.",
            )
        # Matrices of groups that fit into the memory next to the counts of all.
        self._most_matrices = max(0, _MOST_CELLS // max(1, num_cells) - _MATRICES_PER_LAYER)
        self.has_groups = self.has_group_moments = True
        self.layers = [
            LayerTally(pairs=shape.count_pairs(has_moments=True), fitted=shape.count_pairs())
            for shape in self.shapes
        ]
        for tally, (shape, following) in zip(self.layers, pairwise(self.shapes), strict=False):
            if shape.stack == following.stack:
                tally.across = (
                    LayerTransitions(shape.num_experts, following.num_experts),
                    LayerTransitions(shape.num_experts, following.num_experts),
                )

    def add(self, window: DecisionWindow) -> None:
        """Count the decisions of a window."""
        num_groups = len(self._reader.groups)
        self.has_groups &= num_groups <= self._most_matrices
        self.has_group_moments &= num_groups * _MATRICES_PER_GROUP <= self._most_matrices
        choices = [window.layers.get((shape.stack, shape.layer)) for shape in self.shapes]
        kept: dict[int, tuple[Ints, Ints, Ints]] = {}
        for index, (tally, own) in enumerate(zip(self.layers, choices, strict=True)):
            if own is None:
                continue
            self.shapes[index].check(own)
            tally.pairs.add(own.experts, window.prompt[own.token])
            self._add_groups(index, own, window)
            following = choices[index + 1] if tally.across is not None else None
            if following is not None:
                kept[index] = self._add_across(tally, own, following, window)
        self._keep(kept, window)

    def _add_groups(self, index: int, own: LayerChoices, window: DecisionWindow) -> None:
        tally = self.layers[index]
        if not self.has_groups or self.shapes[index].top_k < 2:
            tally.by_group.clear()
            return
        if not self.has_group_moments:
            for pairs in tally.by_group.values():
                pairs.moments = None
        group = window.group[own.token]
        for one in np.unique(group).tolist():
            if one not in tally.by_group:
                tally.by_group[one] = self.shapes[index].count_pairs(
                    has_moments=self.has_group_moments
                )
            mine = group == one
            tally.by_group[one].add(own.experts[mine], window.prompt[own.token[mine]])

    def _add_across(
        self,
        tally: LayerTally,
        own: LayerChoices,
        following: LayerChoices,
        window: DecisionWindow,
    ) -> tuple[Ints, Ints, Ints]:
        """Count the tokens of two layers, and return their experts and prompts."""
        assert tally.across is not None
        here, there, token = _align(own, following)
        prompt = window.prompt[token]
        is_fitted = self._is_fitted[prompt]
        tally.across[0].add(here[is_fitted], there[is_fitted])
        tally.across[1].add(here[~is_fitted], there[~is_fitted])
        tally.fitted.add(here[is_fitted], prompt[is_fitted])
        return here, there, prompt

    def _keep(self, across: dict[int, tuple[Ints, Ints, Ints]], window: DecisionWindow) -> None:
        """Keep the held-out prompts of a window that the sample wants."""
        for prompt in np.unique(window.prompt).tolist():
            prompt_hash = int(self._hashes[prompt])
            if self._is_fitted[prompt] or not self.sample.wants(prompt_hash):
                continue
            experts = {}
            for index, (here, there, prompts) in across.items():
                start, end = np.searchsorted(prompts, [prompt, prompt + 1])
                if start < end:
                    experts[index] = (
                        here[start:end].astype(np.int16),
                        there[start:end].astype(np.int16),
                    )
            num_tokens = max((len(here) for here, _ in experts.values()), default=0)
            self.sample.add(prompt_hash, num_tokens, experts)


def _align(own: LayerChoices, following: LayerChoices) -> tuple[Ints, Ints, Ints]:
    """Return the experts of the tokens that two layers share, and the tokens."""
    if np.array_equal(own.token, following.token):
        return own.experts, following.experts, own.token
    token, here, there = np.intersect1d(
        own.token, following.token, assume_unique=True, return_indices=True
    )
    return own.experts[here], following.experts[there], token
