"""The slots of a cache that belong to one layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

from moetool.simulation.repeated.fingerprints import Fingerprints
from moetool.simulation.repeated.molds import Caster, MoldMaker, find_leaves

_ABSENT = ("absent",)


@dataclass(frozen=True)
class SlotMolds:
    """Molds of what a cache keeps for a layer.

    Attributes:
        entries: The list, the place among the layer's indices, and the mold of each entry.
        fillers: By list, the mold of what the cache puts before the entry for layers without one.
    """

    entries: tuple[tuple[str, int, Any], ...] = ()
    fillers: Mapping[str, Any] = field(default_factory=dict)


class CacheSlots:
    """What a cache keeps for one layer: an entry of each of its lists per index of the layer.

    Args:
        cache: The cache.
        indices: The layer's indices in it.
    """

    def __init__(self, cache: Cache, indices: tuple[int, ...]) -> None:
        self._cache = cache
        self._indices = indices

    @property
    def can_be_told_apart(self) -> bool:
        """Whether it is known which of the cache's contents belong to the layer."""
        return bool(self._indices) and not isinstance(self._cache, EncoderDecoderCache)

    def describe(self, fingerprints: Fingerprints) -> Hashable:
        """Return what the layer finds in the cache."""
        return tuple(
            (name, fingerprints.of_attributes(entries[index]) if index < len(entries) else _ABSENT)
            for name, entries in self._lists()
            for index in self._indices
        )

    def find_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors that the layer finds in the cache, in an order of their own."""
        return tuple(
            leaf
            for _, entries in self._lists()
            for index in self._indices
            if index < len(entries)
            for leaf in find_leaves(list(_attributes(entries[index])))
            if isinstance(leaf, torch.Tensor)
        )

    def describe_rest(self, fingerprints: Fingerprints, *, lengths: Mapping[str, int]) -> Hashable:
        """Return what the cache holds besides, apart from what it puts before the layer's entries.

        Args:
            fingerprints: Describes the cache's contents.
            lengths: How long the cache's lists were before.
        """
        others = [
            (name, index, fingerprints.of_attributes(entries[index]))
            for name, entries in self._lists()
            for index in range(lengths.get(name, 0))
            if index not in self._indices
        ]
        num_after = [len(entries[max(self._indices) + 1 :]) for _, entries in self._lists()]
        plain = {
            name: value for name, value in vars(self._cache).items() if not isinstance(value, list)
        }
        return (tuple(others), tuple(num_after), fingerprints.of_value(plain))

    def measure(self) -> dict[str, int]:
        """Return how long each of the cache's lists is."""
        return {name: len(entries) for name, entries in self._lists()}

    def take_molds(self, maker: MoldMaker, *, lengths: Mapping[str, int]) -> SlotMolds:
        """Return molds of what the cache keeps for the layer.

        Args:
            maker: Takes the molds.
            lengths: How long the cache's lists were before.
        """
        entries = tuple(
            (name, place, maker.take_instance(entries[index]))
            for name, entries in self._lists()
            for place, index in enumerate(self._indices)
            if index < len(entries)
        )
        fillers = {
            name: maker.take_instance(entries[lengths.get(name, 0)])
            for name, entries in self._lists()
            if lengths.get(name, 0) < min(self._indices) < len(entries)
        }
        return SlotMolds(entries, fillers)

    def can_take(self, molds: SlotMolds) -> bool:
        """Return whether it is known what to put before the layer's entries."""
        lengths = self.measure()
        for name, place, _ in molds.entries:
            if self._indices[place] > lengths[name] and name not in molds.fillers:
                return False
            lengths[name] = max(lengths[name], self._indices[place] + 1)
        return True

    def fill(self, molds: SlotMolds, *, caster: Caster) -> None:
        """Keep for the layer what the molds are of."""
        lists = dict(self._lists())
        for name, place, mold in molds.entries:
            index = self._indices[place]
            while len(lists[name]) < index:
                lists[name].append(caster.cast(molds.fillers[name]))
            lists[name][index : index + 1] = [caster.cast(mold)]

    def _lists(self) -> list[tuple[str, list[Any]]]:
        return [
            (name, value) for name, value in vars(self._cache).items() if isinstance(value, list)
        ]


def _attributes(entry: Any) -> list[Any]:
    is_value = isinstance(entry, torch.Tensor) or not hasattr(entry, "__dict__")
    return [entry] if is_value else list(vars(entry).values())
