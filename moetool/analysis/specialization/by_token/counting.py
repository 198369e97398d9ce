"""Counts of experts by token id, for the ids that occur often enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.mixing import mix_bits
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow, LayerChoices

# Counts of all layers together, 4 bytes each and twice for first choices.
_MOST_CELLS = 2**25
# Decisions of a layer that a router of the same popularity draws from.
_DECISIONS_KEPT = 4096


@dataclass(frozen=True)
class FrequentTokens:
    """The token ids with enough occurrences.

    Attributes:
        ids: Ascending. # (num_ids,)
        prompts: Prompts with each. # (num_ids,)
        min_count: Occurrences that were needed: more than asked for if memory is short.
    """

    ids: NDArray[np.int64]
    prompts: NDArray[np.int64]
    min_count: int


def find_frequent(reader: DecisionReader, *, min_count: int, num_cells: int) -> FrequentTokens:
    """Return the frequent token ids.

    Args:
        reader: Of one layer of each stack, with token ids.
        min_count: Occurrences that an id needs.
        num_cells: Experts of all layers that will be counted.

    Raises:
        InputError: The trace has no token ids.
    """
    ids = np.zeros(0, dtype=np.int64)
    counts, prompts = np.zeros((2, 0), dtype=np.int64)
    for window in reader:
        if window.token_id is None:
            raise InputError(
                f"'{printable(reader.facts.trace or 'The frame')}' has no column 'token_id'.",
                hint="Specialization by token needs the ids: trace again, or leave out --by token.",
            )
        # Tokens without an id have a negative one.
        known = window.token_id >= 0
        prompt, token_id = window.prompt[known], window.token_id[known]
        width = int(token_id.max(initial=0)) + 1
        pairs, number = np.unique(prompt * width + token_id, return_counts=True)
        mine, index = np.unique(pairs % width, return_inverse=True)
        merged = np.union1d(ids, mine)
        wider = np.zeros((2, len(merged)), dtype=np.int64)
        wider[:, np.searchsorted(merged, ids)] = counts, prompts
        wider[:, np.searchsorted(merged, mine)] += (
            np.bincount(index, weights=number).astype(np.int64),
            np.bincount(index),
        )
        ids, counts, prompts = merged, *wider
    most = _MOST_CELLS // num_cells
    if (counts >= min_count).sum() > most:
        # As many ids as fit, the most frequent ones.
        min_count = int(np.sort(counts)[-most]) + 1
    is_frequent = counts >= min_count
    return FrequentTokens(ids[is_frequent], prompts[is_frequent], min_count)


@dataclass
class LayerTokenCounts:
    """Counts of one layer.

    Attributes:
        assignments: By frequent token id and expert. # (num_ids, num_experts)
        first: The same for first choices.
        occurrences: Decisions for each id. # (num_ids,)
        load: Assignments of each expert by all tokens. # (num_experts,)
        num_tokens: All decisions.
        num_of_size: Decisions that ran 0, 1, 2, … experts. # (top_k + 1,)
        num_first: Decisions whose first choice ran.
        decisions: Some of them, chosen by their place. # (num_kept, top_k)
        keys: Of these decisions; the smallest are kept.
    """

    assignments: NDArray[np.int32]
    first: NDArray[np.int32]
    occurrences: NDArray[np.int64]
    load: NDArray[np.int64]
    num_tokens: int
    num_of_size: NDArray[np.int64]
    num_first: int
    decisions: NDArray[np.int64]
    keys: NDArray[np.uint64]


@dataclass
class TokenCounter:
    """Counts experts by token id, window by window.

    Args:
        frequent: The token ids to count.
        prompts: Names of the reader's prompts.
    """

    frequent: FrequentTokens
    prompts: Sequence[str]
    layers: dict[Place, LayerTokenCounts] = field(default_factory=dict)
    _hashes: NDArray[np.uint64] | None = None

    def add(self, window: DecisionWindow, layers: Sequence[RoutedLayer]) -> None:
        """Count the decisions of a window."""
        assert window.token_id is not None
        index = np.searchsorted(self.frequent.ids, window.token_id)
        index = np.minimum(index, max(0, len(self.frequent.ids) - 1))
        is_frequent = np.zeros(len(index), dtype=bool)
        if len(self.frequent.ids):
            is_frequent = self.frequent.ids[index] == window.token_id
        keys = self._hash(window)
        for layer in layers:
            choices = window.layers.get((layer.stack, layer.layer))
            if choices is not None:
                total = self._open(layer)
                self._count(total, choices, index, is_frequent)
                _keep(total, choices.experts, keys[choices.token])

    def _open(self, layer: RoutedLayer) -> LayerTokenCounts:
        place = (layer.stack, layer.layer)
        if place not in self.layers:
            number = layer.num_experts + layer.num_identity_experts
            shape = (len(self.frequent.ids), number)
            self.layers[place] = LayerTokenCounts(
                assignments=np.zeros(shape, dtype=np.int32),
                first=np.zeros(shape, dtype=np.int32),
                occurrences=np.zeros(shape[0], dtype=np.int64),
                load=np.zeros(number, dtype=np.int64),
                num_tokens=0,
                num_of_size=np.zeros(layer.top_k + 1, dtype=np.int64),
                num_first=0,
                decisions=np.zeros((0, layer.top_k), dtype=np.int64),
                keys=np.zeros(0, dtype=np.uint64),
            )
        return self.layers[place]

    def _count(
        self,
        total: LayerTokenCounts,
        choices: LayerChoices,
        index: NDArray[np.intp],
        is_frequent: NDArray[np.bool_],
    ) -> None:
        experts, width = choices.experts, len(total.load)
        ran = experts >= 0
        total.load += np.bincount(experts[ran], minlength=width)
        total.num_tokens += len(experts)
        total.num_of_size += np.bincount(ran.sum(axis=1), minlength=len(total.num_of_size))
        total.num_first += int(ran[:, 0].sum())
        mine = is_frequent[choices.token]
        token, experts, ran = index[choices.token][mine], experts[mine], ran[mine]
        total.occurrences += np.bincount(token, minlength=len(total.occurrences))
        for counts, columns in (
            (total.assignments, slice(None)),
            (total.first, slice(0, 1)),
        ):
            cell = (token[:, None] * width + experts[:, columns])[ran[:, columns]]
            counts += (
                np.bincount(cell, minlength=counts.size).reshape(counts.shape).astype(np.int32)
            )

    def _hash(self, window: DecisionWindow) -> NDArray[np.uint64]:
        """Return a number of each token that depends on its prompt and position alone."""
        if self._hashes is None:
            self._hashes = np.array(
                [crc32(name.encode(errors="surrogateescape")) for name in self.prompts],
                dtype=np.uint64,
            )
        key = self._hashes[window.prompt] << np.uint64(32)
        key += window.position.astype(np.uint64)
        return mix_bits(key)


def _keep(total: LayerTokenCounts, experts: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
    """Keep the decisions with the smallest keys, the same whatever the order of the windows."""
    keys, experts = np.append(total.keys, keys), np.vstack([total.decisions, experts])
    order = np.argsort(keys, kind="stable")[:_DECISIONS_KEPT]
    total.keys, total.decisions = keys[order], experts[order]
