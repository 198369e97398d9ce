"""The slots of a cache that belong to one layer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

from moetool.simulation.repeated.fingerprints import Fingerprints
from moetool.simulation.repeated.templates import StandIns, TemplateMaker, find_leaves

_ABSENT = ("absent",)


@dataclass(frozen=True)
class SlotTemplates:
    """Templates of a layer's entries in a cache.

    Attributes:
        entries: The list, the position among the layer's indices, and the template of each entry.
        fillers: By list, the template of what the cache puts before the entry for layers without
            one.
        flags: The position among the layer's indices, and whether an encoder-decoder's cache holds
            the prompt's keys and values by now.
    """

    entries: tuple[tuple[str, int, Any], ...] = ()
    fillers: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[tuple[int, bool], ...] = ()


class CacheSlots:
    """The entries of one layer in a cache: one in each of its lists per index of the layer.

    An encoder-decoder's cache is two caches, and a flag per index.

    Args:
        indices: The layer's indices in it.
    """

    def __init__(self, cache: Cache, indices: tuple[int, ...]) -> None:
        self._indices = indices
        self._parts: dict[str, Any] = {"": cache}
        self._flags: dict[int, bool] = {}
        if isinstance(cache, EncoderDecoderCache):
            names = ("self_attention_cache", "cross_attention_cache")
            self._parts = {name: getattr(cache, name) for name in names}
            self._flags = cache.is_updated

    @property
    def is_known(self) -> bool:
        """Whether it is known which of the cache's contents belong to the layer."""
        return bool(self._indices)

    def describe(self, fingerprints: Fingerprints) -> Hashable:
        """Return the fingerprint of the layer's entries and of what the cache holds for all layers."""
        entries = tuple(
            (name, fingerprints.of_attributes(entries[index]) if index < len(entries) else _ABSENT)
            for name, entries in self._lists()
            for index in self._indices
        )
        flags = tuple(self._flags.get(index) for index in self._indices)
        return (entries, flags, fingerprints.of_value(self._find_plain()))

    def find_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors that the layer finds in the cache, always in the same order."""
        return tuple(
            leaf
            for _, entries in self._lists()
            for index in self._indices
            if index < len(entries)
            for leaf in find_leaves(list(_attributes(entries[index])))
            if isinstance(leaf, torch.Tensor)
        )

    def describe_rest(
        self, fingerprints: Fingerprints, *, lengths: Mapping[str, int]
    ) -> list[object]:
        """Describe the rest of the cache, without entries put before the layer's.

        This is done for each layer that runs, before and after, and a cache has many entries.

        Args:
            fingerprints: Describes values.
            lengths: Length of each of the cache's lists before the call.
        """
        found: list[object] = []
        for name, entries in self._lists():
            found += (name, len(entries[max(self._indices) + 1 :]))
            for index in range(lengths.get(name, 0)):
                if index not in self._indices:
                    fingerprints.list_attributes(entries[index], found)
        flags = {index: flag for index, flag in self._flags.items() if index not in self._indices}
        found.append(fingerprints.of_value([self._find_plain(), flags]))
        return found

    def measure(self) -> dict[str, int]:
        """Return the length of each of the cache's lists."""
        return {name: len(entries) for name, entries in self._lists()}

    def make_templates(self, maker: TemplateMaker, *, lengths: Mapping[str, int]) -> SlotTemplates:
        """Return templates of the layer's entries.

        Args:
            maker: Makes the templates.
            lengths: Length of each of the cache's lists before the call.
        """
        entries = tuple(
            (name, position, maker.make_of_instance(entries[index]))
            for name, entries in self._lists()
            for position, index in enumerate(self._indices)
            if index < len(entries)
        )
        fillers = {
            name: maker.make_of_instance(entries[lengths.get(name, 0)])
            for name, entries in self._lists()
            if lengths.get(name, 0) < min(self._indices) < len(entries)
        }
        flags = tuple(
            (position, self._flags[index])
            for position, index in enumerate(self._indices)
            if index in self._flags
        )
        return SlotTemplates(entries, fillers, flags)

    def can_take(self, templates: SlotTemplates) -> bool:
        """Return whether there are templates for the entries to be put before the layer's."""
        lengths = self.measure()
        for name, position, _ in templates.entries:
            if self._indices[position] > lengths[name] and name not in templates.fillers:
                return False
            lengths[name] = max(lengths[name], self._indices[position] + 1)
        return True

    def fill(self, templates: SlotTemplates, *, stand_ins: StandIns) -> None:
        """Put stand-ins into the layer's entries."""
        lists = dict(self._lists())
        for name, position, template in templates.entries:
            index = self._indices[position]
            while len(lists[name]) < index:
                lists[name].append(stand_ins.make(templates.fillers[name]))
            lists[name][index : index + 1] = [stand_ins.make(template)]
        for position, flag in templates.flags:
            self._flags[self._indices[position]] = flag

    def _find_plain(self) -> list[dict[str, Any]]:
        """Return the attributes of each part of the cache that aren't lists with entries by layer."""
        return [
            {name: value for name, value in vars(part).items() if not isinstance(value, list)}
            for part in self._parts.values()
        ]

    def _lists(self) -> list[tuple[str, list[Any]]]:
        return [
            (f"{part_name}.{name}", value)
            for part_name, part in self._parts.items()
            for name, value in vars(part).items()
            if isinstance(value, list)
        ]


def _attributes(entry: Any) -> list[Any]:
    is_value = isinstance(entry, torch.Tensor) or not hasattr(entry, "__dict__")
    return [entry] if is_value else list(vars(entry).values())
