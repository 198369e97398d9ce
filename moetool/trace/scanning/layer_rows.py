"""Decisions counted by layer and prompt, and a summary of the rows of each layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.trace.scanning.places import PLACE, PLACE_BITS
from moetool.trace.scanning.registry import Registry
from moetool.trace.scanning.rows_of_decisions import find_starts


@dataclass(frozen=True)
class LayerRows:
    """A summary of the rows of a layer.

    Attributes:
        num_decisions: Number of decisions by their number of rows.
        largest: Place of the decision with the most rows, in words.
        smallest: Place of the decision with the fewest rows, in words.
        num_ids: Largest expert id plus one.
    """

    num_decisions: Counter[int]
    largest: str
    smallest: str
    num_ids: int

    @property
    def most_rows(self) -> int:
        """The most rows of a decision."""
        return max(self.num_decisions)

    def holds(self, sizes: Counter[int], *, num_ids: int) -> bool:
        """Return whether decisions of these sizes would change nothing but their number."""
        mine = self.num_decisions
        return num_ids <= self.num_ids and min(mine) <= min(sizes) and max(sizes) <= max(mine)

    def join(self, later: LayerRows) -> LayerRows:
        """Return the summary of these and later rows together."""
        mine, others = self.num_decisions, later.num_decisions
        return LayerRows(
            num_decisions=mine + others,
            largest=self.largest if max(mine) >= max(others) else later.largest,
            smallest=self.smallest if min(mine) <= min(others) else later.smallest,
            num_ids=max(self.num_ids, later.num_ids),
        )


class DecisionTally:
    """Counts decisions.

    Attributes:
        num_decisions: By stack and layer, for each prompt; longer than there are prompts.
        layers: Summaries of the rows by stack and layer.
    """

    def __init__(self, registry: Registry) -> None:
        self.num_decisions: dict[tuple[str, int], NDArray[np.int64]] = {}
        self.layers: dict[tuple[str, int], LayerRows] = {}
        self._registry = registry

    def add(
        self,
        key: NDArray[np.int64],
        *,
        position: NDArray[np.int64],
        size: NDArray[np.int64],
        num_ids: NDArray[np.int64],
        number: NDArray[np.int64] | None = None,
    ) -> None:
        """Count decisions, or runs of them.

        Args:
            key: Of each decision or run, like the other arguments.
            position: Position of its first decision.
            size: Rows of each of its decisions.
            num_ids: Its largest expert id plus one.
            number: Number of its decisions; by default one.
        """
        registry, place = self._registry, key & PLACE
        number = np.ones(len(key), dtype=np.int64) if number is None else number
        order = np.argsort(place, kind="stable")
        for mine in np.split(order, find_starts(place[order])[1:]):
            layer = registry.find_place(key[mine[0]])
            total = self.num_decisions.get(layer, np.zeros(0, dtype=np.int64))
            if len(total) < len(registry.prompts):
                # Twice as many as needed now: a table with new prompts rarely makes all move.
                total = np.pad(total, (0, 2 * len(registry.prompts) - len(total)))
                self.num_decisions[layer] = total
            np.add.at(total, key[mine] >> PLACE_BITS, number[mine])
            of_size = np.bincount(size[mine], weights=number[mine]).astype(np.int64)
            sizes = np.flatnonzero(of_size)
            counted = Counter(dict(zip(sizes.tolist(), of_size[sizes].tolist(), strict=True)))
            most_ids, known = int(num_ids[mine].max()), self.layers.get(layer)
            if known is not None and known.holds(counted, num_ids=most_ids):
                known.num_decisions.update(counted)
                continue
            largest, smallest = mine[size[mine].argmax()], mine[size[mine].argmin()]
            seen = LayerRows(
                counted,
                largest=registry.describe(key[largest], position[largest]),
                smallest=registry.describe(key[smallest], position[smallest]),
                num_ids=most_ids,
            )
            self.layers[layer] = seen if known is None else known.join(seen)
