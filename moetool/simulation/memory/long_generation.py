"""Simulate a generation of any length by running a few of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.steps.decode_steps import (
    Step,
    continue_timeline,
    find_step_between,
    take_step,
)
from moetool.simulation.memory.timeline import Timeline

# A step is taken from a generation in which it is the second: by then nothing depends on the memory
# layout of the prompt any more. It ends where the next one begins.
_NUM_STEPS_BEFORE = 2


@dataclass(frozen=True)
class StepBudget:
    """Limits on the steps of a generation that run or are replayed.

    Attributes:
        few_steps: In generations of at most this many steps, every step runs.
        most_steps: In generations of at most this many steps, every step runs if too many differ.
        most_samples: The most steps that run to find those between them.
        most_events: The most events that are replayed: it takes seconds. In generations with more,
            only every n-th step is replayed.
    """

    few_steps: int = 16
    most_steps: int = 32
    most_samples: int = 24
    most_events: int = 1_000_000


DEFAULT_BUDGET = StepBudget()


def simulate_generation(
    run: MemoryRun,
    *,
    num_prompt_tokens: int,
    num_new_tokens: int,
    budget: StepBudget = DEFAULT_BUDGET,
) -> Timeline | None:
    """Return the timeline of a generation, most of whose steps follow from a few that ran.

    Sizes between two simulated steps of the same form are interpolated when the step half-way
    confirms it. If the generation has more events than the budget allows, steps are left out at equal
    distances, but never the last one.

    Args:
        run: Runs the skeleton.
        num_prompt_tokens: Length of the prompt.
        num_new_tokens: Number of tokens to generate.
        budget: Limits on the steps that run or are replayed.

    Returns:
        The timeline; None if too many steps don't follow from others.

    Raises:
        CantSimulate: The model's code needs data, or inputs other than token ids.
    """
    if num_new_tokens <= (budget.few_steps if run.can_start_later else budget.most_steps):
        return run.generate(num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)
    if not run.can_start_later:
        return None
    # More samples than that would take as long as running every step.
    most_samples = min(budget.most_samples, max(3, num_new_tokens // (_NUM_STEPS_BEFORE + 2)))
    sampler = _Sampler(
        run,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        most_samples=most_samples,
    )
    last = num_new_tokens - 1
    if not sampler.cover(_NUM_STEPS_BEFORE, last):
        if num_new_tokens > budget.most_steps:
            return None
        return run.generate(num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)
    events_of_step = len(sampler.find(last).num_bytes)
    stride = max(1, -(-(last - _NUM_STEPS_BEFORE) * events_of_step // budget.most_events))
    numbers = range(last, _NUM_STEPS_BEFORE, -stride)[::-1]
    return continue_timeline(
        sampler.head,
        num_calls=_NUM_STEPS_BEFORE + 1,
        steps=map(sampler.find, numbers),
    )


class _Sampler:
    """Finds a step by its number, among those that ran or between two of them.

    Attributes:
        head: The generation in which the first step to be covered ran.
    """

    head: Timeline

    def __init__(
        self, run: MemoryRun, *, num_prompt_tokens: int, num_new_tokens: int, most_samples: int
    ) -> None:
        self._run = run
        self._most_samples = most_samples
        self._num_prompt_tokens = num_prompt_tokens
        self._num_new_tokens = num_new_tokens
        self._samples: dict[int, Step | None] = {}
        self._stretches: list[tuple[int, int]] = []

    def _generate_around(self, number: int) -> Timeline:
        """Return a generation whose second step is the one with this number."""
        return self._run.generate(
            num_prompt_tokens=self._num_prompt_tokens,
            num_tokens_before=number - _NUM_STEPS_BEFORE,
            num_new_tokens=_NUM_STEPS_BEFORE + 2,
            num_tokens_after=max(0, self._num_new_tokens - number - 2),
            num_calls=_NUM_STEPS_BEFORE + 1,
        )

    def cover(self, first: int, last: int) -> bool:
        """Run steps until all from one number to another can be found; return False if that fails.

        It fails as soon as the fewest steps that have yet to run are too many.
        """
        # The middle before the ends: numbers of tokens are often powers of two, at which layers that
        # collect tokens do something else, and one step that doesn't follow is enough to give up.
        if any(self._sample(number) is None for number in ((first + last) // 2, first, last)):
            return False
        stretches = [(first, last)]
        while stretches:
            first, last = stretches.pop()
            if last - first > 1:
                middle = (first + last) // 2
                sample = self._sample(middle)
                if sample is None:
                    return False
                expected = self._find_between(first, last, middle)
                if expected is None or not expected.is_same_as(sample):
                    stretches += [(middle, last), (first, middle)]
                    num_needed = sum(self._count_needed(*stretch) for stretch in stretches)
                    if len(self._samples) + num_needed > self._most_samples:
                        return False
                    continue
            self._stretches.append((first, last))
        return True

    def find(self, number: int) -> Step:
        """Return a step that is covered."""
        first, last = next(ends for ends in self._stretches if ends[0] <= number <= ends[1])
        if number == last:
            return self._recall(last)
        step = self._find_between(first, last, number)
        return self._recall(first) if step is None else step

    def _find_between(self, first: int, last: int, number: int) -> Step | None:
        share = Fraction(number - first, last - first)
        return find_step_between(self._recall(first), self._recall(last), share=share)

    def _count_needed(self, first: int, last: int) -> int:
        """Return the fewest steps that have to run between two that ran."""
        is_alike = self._recall(first).form.is_like(self._recall(last).form)
        return _count_fewest(last - first, is_alike=is_alike)

    def _recall(self, number: int) -> Step:
        """Return a step that ran."""
        step = self._samples[number]
        assert step is not None
        return step

    def _sample(self, number: int) -> Step | None:
        if number not in self._samples:
            if len(self._samples) >= self._most_samples:
                return None
            timeline = self._generate_around(number)
            self._samples[number] = take_step(timeline, _NUM_STEPS_BEFORE)
            if number == _NUM_STEPS_BEFORE:
                self.head = timeline
        return self._samples[number]


@cache
def _count_fewest(length: int, *, is_alike: bool) -> int:
    """Return the fewest steps that have to run in a stretch, beyond its ends.

    A stretch is halved until its ends have the same form and the step half-way confirms it, or until
    they are neighbours.

    Args:
        length: Steps from the first to the last.
        is_alike: Whether these two have the same form.
    """
    if length <= 1:
        return 0
    if is_alike:
        return 1
    # One half, at least, has ends of different forms.
    halves = length // 2, length - length // 2
    return 1 + min(
        _count_fewest(one, is_alike=False) + _count_fewest(other, is_alike=True)
        for one, other in (halves, halves[::-1])
    )
