"""A search for the largest scenarios that fit, in few simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from moetool.memory.answers.on_gpus import Limits
from moetool.memory.fitting.trials import AnyTrial, find_crossing, leap

# A brief simulation of this many tokens takes about 2 s and 0.4 GiB, and of 2^27 tokens 13 s and 4 GiB:
# the ids of all tokens are kept, in several copies of 8 bytes each.
MOST_TOKENS_AT_ONCE = 2**24
# The most sequences and the longest prompt that are tried, whatever fits.
_MOST_SEQUENCES = 2**20
_MOST_TOKENS = 2**27
# A prompt that doesn't fit may be longer than the limit by this many tokens or percent.
_STEP_TOKENS = 64
_STEP_SHARE = 100
# The factor by which a number grows at once while everything fits.
_LARGEST_GROWTH = 16
# The factor by which the largest number may be larger than one that fits in less than it would take.
_MOST_BEYOND = 2
# After this many calls that followed lines, intervals are halved.
_MOST_LINES = 8
# Each such search is followed by two trials. Every step is tried after them.
_MOST_SEARCHES_BY_GUESSES = 3


# Takes what tries a number, and returns what `_find_largest` does.
_Search = Callable[[Callable[[int], AnyTrial | None]], tuple[int, bool]]


@dataclass(frozen=True)
class FoundLimits:
    """The largest scenarios that fit, as far as the search went.

    Attributes:
        is_prompt_cut: Whether a longer prompt might fit but was not tried.
        is_batch_cut: Whether a larger batch might fit but was not tried.
    """

    limits: Limits
    is_prompt_cut: bool
    is_batch_cut: bool


@dataclass(frozen=True)
class LongestPrompt:
    """The longest prompt that fits, as far as the search went.

    Attributes:
        num_tokens: Its tokens; 0 if none fits.
        is_whole_context: Whether only the model's context limits it.
        is_cut: Whether a longer one might fit but was not tried.
    """

    num_tokens: int
    is_whole_context: bool
    is_cut: bool


def search_limits(
    try_sizes: Callable[[int, int], AnyTrial | None],
    *,
    guess_sizes: Callable[[int, int], AnyTrial | None] | None = None,
    is_too_large: Callable[[int, int], bool] | None = None,
    memory_bytes: int,
    batch_size: int,
    num_prompt_tokens: int,
    num_new_tokens: int,
    context: int | None,
    most_tokens_at_once: int | None = None,
) -> FoundLimits:
    """Return the longest prompt at a batch size, and the largest batch at that prompt, that fit.

    Both were tried and fit. One more sequence was tried and doesn't fit, and neither does a prompt
    that is longer by 1 % or 64 tokens, whichever is more, unless the model's context or the largest
    size tried ends the search. Because an allocator's pools don't grow evenly, something larger
    might fit again; the search doesn't look for it. At most 2^20 sequences and 2^27 tokens are
    tried.

    Each search takes about five trials if bytes grow linearly or quadratically with the size, as
    they do in models.

    Args:
        try_sizes: Simulates a batch size and a number of prompt tokens, once for each pair; None if
            they are too large for that, which ends a search.
        guess_sizes: Returns the trial that is expected, in less time. A search follows guesses, and
            what it finds is tried; None to try each step.
        is_too_large: Whether a trial doesn't fit, as a part of it shows in less time; False if the
            part fits. None without such parts.
        memory_bytes: The GPU's memory.
        batch_size: The batch size at which the longest prompt is looked for.
        num_prompt_tokens: The prompt length at which the largest batch is looked for.
        num_new_tokens: Tokens generated for each sequence.
        context: The most tokens of a sequence, new ones included; None if the model doesn't say.
        most_tokens_at_once: The most tokens of all sequences together that are tried, new ones
            included; None for no further limit.
    """
    try_once = cache(try_sizes)
    prompt = search_longest_prompt(
        lambda number: try_once(batch_size, number),
        guess_tokens=guess_sizes and (lambda number: guess_sizes(batch_size, number)),
        is_too_long=is_too_large and (lambda number: is_too_large(batch_size, number)),
        memory_bytes=memory_bytes,
        batch_size=batch_size,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        context=context,
        most_tokens_at_once=most_tokens_at_once,
    )
    most_sequences = _MOST_SEQUENCES
    if most_tokens_at_once is not None:
        tokens_of_sequence = num_prompt_tokens + num_new_tokens
        # The sizes that were asked for are always tried.
        most_tokens_at_once = max(most_tokens_at_once, batch_size * tokens_of_sequence)
        most_sequences = min(most_sequences, most_tokens_at_once // tokens_of_sequence)
    search = partial(
        _find_largest,
        memory_bytes=memory_bytes,
        start=batch_size,
        largest=most_sequences,
        find_step=lambda _number: 1,
    )
    batch, is_batch_cut = _find_by_guesses(
        search,
        lambda number: try_once(number, num_prompt_tokens),
        guess_sizes and (lambda number: guess_sizes(number, num_prompt_tokens)),
        is_too_large=is_too_large and (lambda number: is_too_large(number, num_prompt_tokens)),
    )
    return FoundLimits(
        Limits(
            largest_prompt_tokens=prompt.num_tokens,
            largest_batch_size=batch,
            is_whole_context=prompt.is_whole_context,
        ),
        is_prompt_cut=prompt.is_cut,
        is_batch_cut=is_batch_cut or batch == most_sequences,
    )


def search_longest_prompt(
    try_tokens: Callable[[int], AnyTrial | None],
    *,
    guess_tokens: Callable[[int], AnyTrial | None] | None = None,
    is_too_long: Callable[[int], bool] | None = None,
    memory_bytes: int,
    batch_size: int,
    num_prompt_tokens: int,
    num_new_tokens: int,
    context: int | None,
    most_tokens_at_once: int | None = None,
) -> LongestPrompt:
    """Return the longest prompt that fits at a batch size, as `search_limits` finds it.

    The other arguments are those of `search_limits`.

    Args:
        try_tokens: Simulates a number of prompt tokens; None if they are too many for that, which
            ends the search.
        guess_tokens: Returns the trial that is expected; None to try each step.
        is_too_long: Whether a part of a trial shows that it doesn't fit; None without such parts.
        batch_size: Sequences at once.
        num_prompt_tokens: The number to begin with.
    """
    most_prompt_tokens = _MOST_TOKENS
    if most_tokens_at_once is not None:
        asked_for = batch_size * (num_prompt_tokens + num_new_tokens)
        most_prompt_tokens = min(
            most_prompt_tokens, max(most_tokens_at_once, asked_for) // batch_size - num_new_tokens
        )
    most_in_context = None if context is None else context - num_new_tokens
    largest = (
        most_prompt_tokens if most_in_context is None else min(most_in_context, most_prompt_tokens)
    )
    search = partial(
        _find_largest,
        memory_bytes=memory_bytes,
        start=num_prompt_tokens,
        largest=largest,
        find_step=lambda number: max(_STEP_TOKENS, number // _STEP_SHARE),
    )
    prompt, is_cut = _find_by_guesses(search, try_tokens, guess_tokens, is_too_large=is_too_long)
    is_whole_context = 0 < prompt == most_in_context
    return LongestPrompt(
        prompt,
        is_whole_context=is_whole_context,
        is_cut=is_cut or (prompt == most_prompt_tokens and not is_whole_context),
    )


def _find_by_guesses(
    search: _Search,
    try_number: Callable[[int], AnyTrial | None],
    guess_number: Callable[[int], AnyTrial | None] | None,
    *,
    is_too_large: Callable[[int], bool] | None,
) -> tuple[int, bool]:
    """Return what a search by trials finds, after few trials.

    Each step is guessed. The number found is tried, and so is the next one that was too large, unless
    a part of it is too large already. Each trial makes the next guesses better. If guesses are wrong
    again and again, each step is tried.
    """
    if guess_number is None:
        return search(try_number)
    for _ in range(_MOST_SEARCHES_BY_GUESSES):
        found, guesses = _follow_guesses(search, guess_number)
        beyond = min((number for number in guesses if number > found[0]), default=None)
        is_confirmed = found[0] not in guesses or _agree(try_number(found[0]), guesses[found[0]])
        if is_confirmed and (
            beyond is None
            or (is_too_large is not None and is_too_large(beyond))
            or _agree(try_number(beyond), guesses[beyond])
        ):
            return found
    return search(try_number)


def _agree(one: AnyTrial | None, other: AnyTrial | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.fits == other.fits and one.total_bytes == other.total_bytes


def _follow_guesses(
    search: _Search,
    guess_number: Callable[[int], AnyTrial | None],
) -> tuple[tuple[int, bool], dict[int, AnyTrial | None]]:
    """Return what a search finds by guesses, and the guesses."""
    guesses: dict[int, AnyTrial | None] = {}

    def guess(number: int) -> AnyTrial | None:
        guesses[number] = guess_number(number)
        return guesses[number]

    return search(guess), guesses


def _find_largest(
    try_number: Callable[[int], AnyTrial | None],
    *,
    memory_bytes: int,
    start: int,
    largest: int,
    find_step: Callable[[int], int],
) -> tuple[int, bool]:
    """Return a number that fits while one at most a step above doesn't; 0 if 1 doesn't fit.

    The second value is whether the search ended early, at a number that was too large to try.

    Args:
        try_number: Tries a number.
        memory_bytes: The GPU's memory.
        start: The number to begin with.
        largest: The largest number that may be tried, and that is returned if it fits.
        find_step: Returns the step above a number that fits.
    """
    seen: dict[int, AnyTrial] = {}
    fitting, failing = 0, largest + 1
    is_largest_tried = is_leap_tried = False
    number: int | None = min(start, largest)
    while number is not None and number > 0:
        trial = try_number(number)
        if trial is None:
            return fitting, True
        seen[number] = trial
        if trial.fits:
            fitting = number
        else:
            failing = number
        step = find_step(fitting)
        is_beyond = trial.fits and trial.exceeds(memory_bytes)
        if is_beyond and not is_largest_tried and fitting < largest <= _MOST_BEYOND * fitting:
            # From here on, steps are small. If the largest fits, none of them is needed.
            is_largest_tried = True
            last = try_number(largest)
            if last is not None and last.fits:
                return largest, False
        if is_beyond and not is_leap_tried and step == 1:
            # A prompt's steps are coarse: the number at which they end depends on where they began.
            is_leap_tried = True
            fitting, failing = leap(
                seen, try_number, memory_bytes, fitting=fitting, failing=failing
            )
        if failing > largest:
            number = _grow(seen, memory_bytes, fitting=fitting, largest=largest, step=step)
        else:
            number = _narrow(seen, memory_bytes, fitting=fitting, failing=failing, step=step)
    return fitting, False


def _grow(
    seen: Mapping[int, AnyTrial], memory_bytes: int, *, fitting: int, largest: int, step: int
) -> int | None:
    """Return the next number to try while all have fitted; None if there is no larger one."""
    if fitting == largest:
        return None
    if len(seen) == 1:
        return min(2 * fitting, largest)
    most = min(_LARGEST_GROWTH * fitting, largest)
    if seen[fitting].exceeds(memory_bytes):
        # It fits in less than it would take: mostly nothing larger does, and seldom much more.
        num_beyond = sum(trial.exceeds(memory_bytes) for trial in seen.values())
        return min(fitting + (step << (num_beyond - 1)), largest)
    crossing = find_crossing(seen, sorted(seen)[-2:], memory_bytes)
    return most if crossing is None else min(max(crossing, fitting + step), most)


def _narrow(
    seen: Mapping[int, AnyTrial], memory_bytes: int, *, fitting: int, failing: int, step: int
) -> int | None:
    """Return the next number to try between one that fits and one that doesn't; None at the end."""
    if fitting == 0:
        return 1 if failing > 1 else None
    if failing - fitting <= step:
        return None
    number = (fitting + failing) // 2
    if (
        len(seen) <= _MOST_LINES
        and not seen[fitting].exceeds(memory_bytes)
        and seen[failing].exceeds(memory_bytes)
    ):
        nearest = sorted(seen, key=lambda number: abs(seen[number].total_bytes - memory_bytes))[:2]
        crossing = find_crossing(seen, nearest, memory_bytes)
        if crossing is None or not fitting <= crossing < failing:
            crossing = find_crossing(seen, [fitting, failing], memory_bytes)
        number = number if crossing is None else crossing
    return min(max(number, fitting + step), failing - step)
