"""The largest scenarios that fit on a GPU, found in few simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from moetool.catalogue.gpus import Gpu
from moetool.memory.result import Limits

# No more sequences or tokens are asked for, whatever fits.
_MOST_SEQUENCES = 2**20
_MOST_TOKENS = 2**27
# How far above the longest prompt one that doesn't fit may lie.
_STEP_TOKENS = 64
_STEP_SHARE = 100
# By how much a number grows at once while everything fits.
_LARGEST_GROWTH = 16
# By what part it grows where it fits in less than it would take.
_SMALL_GROWTH = 8
# After so many calls that followed lines, what is left is halved.
_MOST_LINES = 8


def find_limits(
    total_bytes_of: Callable[[int, int], int],
    *,
    runs_within: Callable[[int, int], bool] | None = None,
    gpu: Gpu,
    batch_size: int,
    num_prompt_tokens: int,
    num_new_tokens: int,
    context: int | None,
) -> Limits:
    """Return the longest prompt at a batch size, and the largest batch at that prompt, that fit.

    Both were seen to fit. One sequence more was seen not to, and so was a prompt that is longer by
    1 % or 64 tokens, whichever is more, unless it is the model's context that ends it. Because an
    allocator's pools don't grow evenly, something larger still might fit again: that is not looked
    for. No more than 2^20 sequences and 2^27 tokens are tried.

    Each search takes about five calls where bytes grow with the size as they do in models, in a
    line or a square.

    Args:
        total_bytes_of: Simulates a batch size and a number of prompt tokens and returns what they
            take on a device that has all they ask for. It is called once for each.
        runs_within: Returns whether a batch size and a number of prompt tokens that take more than
            the GPU has run through on it all the same, because torch's allocator gives back what it
            holds in reserve. Called after `total_bytes_of`; None if none does.
        gpu: The GPU.
        batch_size: At which the longest prompt is looked for.
        num_prompt_tokens: At which the largest batch is looked for.
        num_new_tokens: Tokens that each sequence is continued by.
        context: Tokens that a sequence may have, new ones included; None if the model doesn't say.
    """
    count_bytes = cache(total_bytes_of)

    def fits(batch_size: int, tokens: int) -> bool:
        if count_bytes(batch_size, tokens) <= gpu.memory_bytes:
            return True
        return runs_within is not None and runs_within(batch_size, tokens)

    most_tokens = _MOST_TOKENS if context is None else context - num_new_tokens
    prompt = _find_largest(
        lambda number: count_bytes(batch_size, number),
        lambda number: fits(batch_size, number),
        capacity_bytes=gpu.memory_bytes,
        start=num_prompt_tokens,
        largest=most_tokens,
        find_step=lambda number: max(_STEP_TOKENS, number // _STEP_SHARE),
    )
    batch = _find_largest(
        lambda number: count_bytes(number, num_prompt_tokens),
        lambda number: fits(number, num_prompt_tokens),
        capacity_bytes=gpu.memory_bytes,
        start=batch_size,
        largest=_MOST_SEQUENCES,
        find_step=lambda _number: 1,
    )
    return Limits(
        gpu=gpu.id,
        largest_prompt_tokens=prompt,
        largest_batch_size=batch,
        is_whole_context=context is not None and 0 < prompt == most_tokens,
    )


def _find_largest(
    count_bytes: Callable[[int], int],
    fits: Callable[[int], bool],
    *,
    capacity_bytes: int,
    start: int,
    largest: int,
    find_step: Callable[[int], int],
) -> int:
    """Return a number that fits while one at most a step above doesn't; 0 if 1 doesn't fit.

    Args:
        count_bytes: Returns what a number takes where there is room for it.
        fits: Returns whether it fits, even if there is less.
        capacity_bytes: What there is.
        start: Where to begin.
        largest: The largest number that may be tried, and that is returned if it fits.
        find_step: Returns the step above a number that fits.
    """
    seen: dict[int, int] = {}
    fitting, failing = 0, largest + 1
    number: int | None = min(start, largest)
    while number is not None and number > 0:
        seen[number] = count_bytes(number)
        if fits(number):
            fitting = number
        else:
            failing = number
        step = find_step(fitting)
        if failing > largest:
            number = _grow(seen, capacity_bytes, fitting=fitting, largest=largest, step=step)
        else:
            number = _narrow(seen, capacity_bytes, fitting=fitting, failing=failing, step=step)
    return fitting


def _grow(
    seen: Mapping[int, int], capacity_bytes: int, *, fitting: int, largest: int, step: int
) -> int | None:
    """Return the next number to try while all have fitted; None if there is no larger one."""
    if fitting == largest:
        return None
    if len(seen) == 1:
        return min(2 * fitting, largest)
    crossing = _find_crossing(seen, sorted(seen)[-2:], capacity_bytes)
    most = min(_LARGEST_GROWTH * fitting, largest)
    if seen[fitting] > capacity_bytes:
        # It fits in less than it would take, and little more will.
        return min(fitting + max(fitting // _SMALL_GROWTH, step), largest)
    return most if crossing is None else min(max(crossing, fitting + step), most)


def _narrow(
    seen: Mapping[int, int], capacity_bytes: int, *, fitting: int, failing: int, step: int
) -> int | None:
    """Return the next number to try between one that fits and one that doesn't; None at the end."""
    if fitting == 0:
        return 1 if failing > 1 else None
    if failing - fitting <= step:
        return None
    number = (fitting + failing) // 2
    if len(seen) <= _MOST_LINES and seen[fitting] <= capacity_bytes < seen[failing]:
        nearest = sorted(seen, key=lambda number: abs(seen[number] - capacity_bytes))[:2]
        crossing = _find_crossing(seen, nearest, capacity_bytes)
        if crossing is None or not fitting <= crossing < failing:
            crossing = _find_crossing(seen, [fitting, failing], capacity_bytes)
        number = number if crossing is None else crossing
    return min(max(number, fitting + step), failing - step)


def _find_crossing(
    seen: Mapping[int, int], numbers: Sequence[int], capacity_bytes: int
) -> int | None:
    """Return the last number that fits, by a line through two; None if the line doesn't rise."""
    one, other = sorted(numbers)
    rise = seen[other] - seen[one]
    return None if rise <= 0 else one + (capacity_bytes - seen[one]) * (other - one) // rise
