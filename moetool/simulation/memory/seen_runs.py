"""Runs of one model that differ only in sizes, and generations that follow from those that ran."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from moetool.simulation.memory.expected_sizes import expect_sizes, expect_sort_sizes
from moetool.simulation.memory.steps.event_table import EventTable, Numbers
from moetool.simulation.memory.timeline import Origins, Timeline
from moetool.simulation.repeated.layer_outcomes import LayerOutcomes
from moetool.simulation.run_options import RunOptions

_Found = TypeVar("_Found")

# The prompt, and the first step after it.
_NUM_CALLS = 2
# Sizes grow in a line with the batch. With the prompt they also grow in blocks or with its square,
# which two prompts don't tell from a line.
_FEWEST_BATCHES = 2
_FEWEST_PROMPTS = 3


@dataclass(frozen=True)
class SeenRuns:
    """The common knowledge of runs of one model on equal terms.

    The runs may differ in the number of sequences and of tokens, and in nothing else.

    Attributes:
        origins: The places in the model where memory is requested.
        outcomes: What its layers did.
    """

    origins: Origins = field(default_factory=Origins)
    outcomes: LayerOutcomes = field(default_factory=LayerOutcomes)
    # By batch size and length of the prompt.
    _generations: dict[tuple[int, int], Timeline] = field(default_factory=dict)

    def keep(self, timeline: Timeline, batch_size: int, num_prompt_tokens: int) -> None:
        """Keep a generation that ran, up to the end of its first step."""
        if len(timeline.calls) < _NUM_CALLS:
            return
        calls = timeline.calls[:_NUM_CALLS]
        events = EventTable.of(timeline.events[: calls[-1].end_event])
        kept = replace(timeline, events=events, calls=calls)
        self._generations[batch_size, num_prompt_tokens] = kept

    def expect(self, batch_size: int, num_prompt_tokens: int) -> Timeline | None:
        """Return the prompt and the first step of a generation as those that ran let it expect.

        A run has to confirm it: beyond those that ran, sizes may grow in another way. None if it
        doesn't follow from others, or if they are too few.
        """
        prompts = self._list_prompts(batch_size)
        if num_prompt_tokens in prompts:
            return prompts[num_prompt_tokens]
        batches = self._list_batches(num_prompt_tokens)
        return _follow(prompts, num_prompt_tokens, fewest=_FEWEST_PROMPTS) or _follow(
            batches, batch_size, fewest=_FEWEST_BATCHES
        )

    def _list_prompts(self, batch_size: int) -> dict[int, Timeline]:
        """Return the generations of a batch size, by the length of the prompt."""
        return {
            tokens: timeline
            for (batch, tokens), timeline in self._generations.items()
            if batch == batch_size
        }

    def _list_batches(self, num_prompt_tokens: int) -> dict[int, Timeline]:
        """Return generations after a prompt by their batch size, expected ones too."""
        found: dict[int, Timeline] = {}
        for batch in {batch for batch, _ in self._generations}:
            prompts = self._list_prompts(batch)
            timeline = prompts.get(num_prompt_tokens) or _follow(
                prompts, num_prompt_tokens, fewest=_FEWEST_PROMPTS
            )
            if timeline is not None:
                found[batch] = timeline
        return found


class SeenByOptions:
    """The runs of one model, apart by whatever else than sizes they depend on."""

    def __init__(self) -> None:
        self._seen: dict[RunOptions, SeenRuns] = {}
        self._found: dict[Hashable, Any] = {}

    def find(self, options: RunOptions) -> SeenRuns | None:
        """Return the runs on the same terms; None if generations depend on more than sizes."""
        if not options.is_led_by_sizes:
            return None
        return self._seen.setdefault(replace(options, batch_size=1), SeenRuns())

    def find_once(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """Return what was found before, or find it now.

        Args:
            key: Everything besides the model that the finding depends on.
        """
        if key not in self._found:
            self._found[key] = find()
        found: _Found = self._found[key]
        return found


def _follow(seen: dict[int, Timeline], number: int, *, fewest: int) -> Timeline | None:
    """Return the timeline that is expected at a number, from those of the nearest form."""
    nearest = sorted(seen, key=lambda each: abs(each - number))
    for first in nearest:
        like = [each for each in nearest if _are_alike(seen[first], seen[each])]
        if len(like) < fewest:
            continue
        timelines = [seen[each] for each in like]
        sizes = _expect_sizes(timelines, like, number)
        return None if sizes is None else _resize(timelines[0], sizes)
    return None


def _expect_sizes(timelines: list[Timeline], numbers: list[int], number: int) -> Numbers | None:
    seen = np.stack([_list_sizes(each) for each in timelines])
    sizes, is_unknown = expect_sizes(numbers, seen, number)
    events, origins = EventTable.of(timelines[0].events), timelines[0].origins
    for place in np.flatnonzero(is_unknown).tolist():
        # A sort makes indices, and then takes temporary memory.
        if place >= len(events) or origins[int(events.origins[place])].operation != "sort":
            return None
        size = expect_sort_sizes(seen[:, place - 1], seen[:, place], int(sizes[place - 1]))
        if size is None:
            return None
        sizes[place] = size
    return sizes


def _are_alike(one: Timeline, other: Timeline) -> bool:
    """Return whether two timelines of the same model differ in nothing but sizes."""
    events, others = EventTable.of(one.events), EventTable.of(other.events)
    return (
        (one.workspace_block, one.lt_workspace_block)
        == (other.workspace_block, other.lt_workspace_block)
        and [(call.first_event, call.end_event, call.cache_blocks) for call in one.calls]
        == [(call.first_event, call.end_event, call.cache_blocks) for call in other.calls]
        and [replace(loop, num_left_out=0) for loop in one.loops]
        == [replace(loop, num_left_out=0) for loop in other.loops]
        and np.array_equal(events.blocks, others.blocks)
        and np.array_equal(events.origins, others.origins)
        and np.array_equal(events.num_bytes >= 0, others.num_bytes >= 0)
    )


def _list_sizes(timeline: Timeline) -> Numbers:
    """Return the sizes of all events, of each call's cache, and the iterations left out."""
    caches = [(call.cache_bytes, call.host_cache_bytes) for call in timeline.calls]
    left_out = np.array([loop.num_left_out for loop in timeline.loops], np.int64)
    return np.concatenate([EventTable.of(timeline.events).num_bytes, np.ravel(caches), left_out])


def _resize(timeline: Timeline, sizes: Numbers) -> Timeline:
    """Return a timeline with other sizes, in the order of `_list_sizes`."""
    events = EventTable.of(timeline.events)
    num_sizes = len(events) + 2 * len(timeline.calls)
    caches = sizes[len(events) : num_sizes].reshape(-1, 2).tolist()
    loops = tuple(
        replace(loop, num_left_out=number)
        for loop, number in zip(timeline.loops, sizes[num_sizes:].tolist(), strict=True)
    )
    calls = tuple(
        replace(call, cache_bytes=cache_bytes, host_cache_bytes=host_bytes)
        for call, (cache_bytes, host_bytes) in zip(timeline.calls, caches, strict=True)
    )
    sized = EventTable(events.blocks, sizes[: len(events)], events.origins)
    return replace(timeline, events=sized, calls=calls, loops=loops)
