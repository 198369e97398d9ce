"""Runs of one model that differ only in sizes, and generations that follow from those that ran."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import numpy as np

from moetool.anatomy.structure.model_modules import KnownModules
from moetool.simulation.memory.expected_sizes import SeenSizes
from moetool.simulation.memory.forms import (
    are_alike,
    find_sorts,
    follow_both,
    list_sizes,
    resize,
    take_form,
)
from moetool.simulation.memory.steps.event_table import EventTable
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


class GivenTokens(NamedTuple):
    """The tokens of each sequence that a generation begins with.

    Attributes:
        num_prompt_tokens: Those of the prompt.
        num_decoder_tokens: In an encoder-decoder, those that the decoder is given with it; 0 if it
            begins by itself.
    """

    num_prompt_tokens: int
    num_decoder_tokens: int = 0

    @classmethod
    def after(
        cls, num_prompt_tokens: int, num_tokens_before: int, *, is_encoder_decoder: bool
    ) -> GivenTokens:
        """Return the tokens with which a generation goes on after those generated earlier."""
        if not is_encoder_decoder:
            return cls(num_prompt_tokens + num_tokens_before)
        return cls(num_prompt_tokens, 1 + num_tokens_before if num_tokens_before else 0)


@dataclass(frozen=True)
class SeenRuns:
    """The common knowledge of runs of one model on equal terms.

    The runs may differ in the number of sequences and of tokens, and in nothing else.

    Attributes:
        origins: The places in the model where memory is requested.
        outcomes: What its layers did.
        modules: The model's modules.
    """

    origins: Origins = field(default_factory=Origins)
    outcomes: LayerOutcomes = field(default_factory=LayerOutcomes)
    modules: KnownModules = field(default_factory=KnownModules)
    # By batch size and what each sequence begins with.
    _generations: dict[tuple[int, GivenTokens], Timeline] = field(default_factory=dict)
    # Those of each batch size by their prompt, and of each prompt by their batch size.
    _prompts: dict[tuple[int, int], _Generations] = field(default_factory=dict)
    _batches: dict[GivenTokens, _Generations] = field(default_factory=dict)

    def keep(self, timeline: Timeline, batch_size: int, given: GivenTokens) -> None:
        """Keep a generation that ran, up to the end of its first step."""
        calls = timeline.calls[:_NUM_CALLS]
        if len(calls) < _NUM_CALLS or calls[-1].is_empty:
            return
        events = EventTable.of(timeline.events[: calls[-1].end_event])
        self._generations[batch_size, given] = replace(timeline, events=events, calls=calls)
        self._prompts.clear()
        self._batches.clear()

    def expect(self, batch_size: int, given: GivenTokens) -> Timeline | None:
        """Return the prompt and the first step of a generation as those that ran let it expect.

        A run has to confirm it: beyond those that ran, sizes may grow in another way. None if it
        doesn't follow from others, or if they are too few.
        """
        return self._expect_by_prompts(batch_size, given) or self._expect_by_batches(
            batch_size, given
        )

    def _expect_by_prompts(self, batch_size: int, given: GivenTokens) -> Timeline | None:
        key = (batch_size, given.num_decoder_tokens)
        if key not in self._prompts:
            seen = {
                each.num_prompt_tokens: timeline
                for (batch, each), timeline in self._generations.items()
                if (batch, each.num_decoder_tokens) == key
            }
            self._prompts[key] = _Generations(seen, fewest=_FEWEST_PROMPTS)
        return self._prompts[key].expect(given.num_prompt_tokens)

    def _expect_by_batches(self, batch_size: int, given: GivenTokens) -> Timeline | None:
        if given not in self._batches:
            batches = {batch for batch, _ in self._generations}
            found = {
                batch: self._expect_by_prompts(batch, given) or self._expect_by_both(batch, given)
                for batch in batches
            }
            seen = {batch: timeline for batch, timeline in found.items() if timeline is not None}
            self._batches[given] = _Generations(_take_one_form(seen), fewest=_FEWEST_BATCHES)
        return self._batches[given].expect(batch_size)

    def _expect_by_both(self, batch_size: int, given: GivenTokens) -> Timeline | None:
        """Return a generation that differs from one in its prompt, and from another in its batch."""
        for (batch, other_given), timeline in self._generations.items():
            if batch != batch_size or other_given.num_decoder_tokens != given.num_decoder_tokens:
                continue
            for smaller in sorted({each for each, _ in self._generations if each < batch_size}):
                corner = self._generations.get((smaller, other_given))
                longer = self._expect_by_prompts(smaller, given)
                if corner is not None and longer is not None:
                    share = Fraction(smaller, batch_size)
                    return follow_both(corner, longer, timeline, share=share)
        return None


class SeenByOptions:
    """The runs of one model, apart by whatever else than sizes they depend on.

    Attributes:
        modules: The model's modules.
    """

    def __init__(self) -> None:
        self.modules = KnownModules()
        self._seen: dict[RunOptions, SeenRuns] = {}
        self._found: dict[Hashable, Any] = {}

    def find(self, options: RunOptions) -> SeenRuns | None:
        """Return the runs on the same terms; None if generations depend on more than sizes."""
        if not options.is_led_by_sizes:
            return None
        return self._seen.setdefault(replace(options, batch_size=1), SeenRuns(modules=self.modules))

    def find_once(self, key: Hashable, find: Callable[[], _Found]) -> _Found:
        """Return what was found before, or find it now.

        Args:
            key: Everything besides the model that the finding depends on.
        """
        if key not in self._found:
            self._found[key] = find()
        found: _Found = self._found[key]
        return found


class _Generations:
    """Generations of which one number differs.

    Args:
        seen: The generations by that number.
        fewest: The fewest of one form from which others follow.
    """

    def __init__(self, seen: Mapping[int, Timeline], *, fewest: int) -> None:
        self._seen = seen
        self._fewest = fewest
        self._alike: list[list[int]] = []
        for number, timeline in seen.items():
            for numbers in self._alike:
                if are_alike(seen[numbers[0]], timeline):
                    numbers.append(number)
                    break
            else:
                self._alike.append([number])
        self._sizes: dict[int, SeenSizes] = {}

    def expect(self, number: int) -> Timeline | None:
        """Return the generation at a number, as those of the nearest form let it expect."""
        if number in self._seen:
            return self._seen[number]
        enough = [index for index, each in enumerate(self._alike) if len(each) >= self._fewest]
        if not enough:
            return None
        nearest = min(
            enough, key=lambda index: min(abs(each - number) for each in self._alike[index])
        )
        sizes, is_unknown = self._find_sizes(nearest).expect(number)
        if is_unknown.any():
            return None
        return resize(self._seen[self._alike[nearest][0]], sizes)

    def _find_sizes(self, index: int) -> SeenSizes:
        """Return the sizes of generations of the same form."""
        if index not in self._sizes:
            numbers = self._alike[index]
            sizes = np.stack([list_sizes(self._seen[number]) for number in numbers])
            self._sizes[index] = SeenSizes(numbers, sizes, sorts=find_sorts(self._seen[numbers[0]]))
        return self._sizes[index]


def _take_one_form(seen: Mapping[int, Timeline]) -> Mapping[int, Timeline]:
    """Return generations of two batches in the form of the larger, if there are no others.

    A batch of one often does without copies that every other makes. Where both already have the same
    form, nothing changes.
    """
    if len(seen) != _FEWEST_BATCHES:
        return seen
    (smaller, one), (larger, other) = sorted(seen.items())
    formed = take_form(one, other, share=Fraction(smaller, larger))
    return seen if formed is None else {smaller: formed, larger: other}
