"""Searches for limits that follow guesses, compared with searches that try each step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.memory.fitting.search import FoundLimits, search_limits
from moetool.memory.fitting.trials import AnyTrial, LateTrial, Trial

MIB = 2**20
CAPACITY = 80 * 1024 * MIB
Sizes = tuple[int, int]


def count_bytes(batch_size: int, num_prompt_tokens: int) -> int:
    """Return bytes that grow in segments, with the square of the prompt too."""
    per_sequence = 300 * MIB + num_prompt_tokens * 200_000 + num_prompt_tokens**2 * 16
    return -(-(batch_size * per_sequence + 20_000 * MIB) // (2 * MIB)) * 2 * MIB


def search(
    guess: Callable[[int, int], AnyTrial | None] | None,
    tried: list[Sizes] | None = None,
    *,
    is_too_large: Callable[[int, int], bool] | None = None,
) -> FoundLimits:
    def try_sizes(batch_size: int, num_prompt_tokens: int) -> Trial:
        sizes = (batch_size, num_prompt_tokens)
        if tried is not None:
            tried.append(sizes)
        return as_trial(count_bytes(*sizes))

    return search_limits(
        try_sizes,
        guess_sizes=guess,
        is_too_large=is_too_large,
        memory_bytes=CAPACITY,
        batch_size=1,
        num_prompt_tokens=2048,
        num_new_tokens=256,
        context=10**6,
    )


def as_trial(total_bytes: int) -> Trial:
    return Trial(total_bytes, fits=total_bytes <= CAPACITY)


def test_right_guesses_lead_to_the_same_limits_and_only_their_ends_are_tried() -> None:
    tried: list[Sizes] = []
    found = search(lambda *sizes: as_trial(count_bytes(*sizes)), tried)
    assert found == search(None)
    prompt, batch = found.limits.largest_prompt_tokens, found.limits.largest_batch_size
    longer = min(tokens for _, tokens in tried if tokens > prompt)
    assert sorted(tried) == sorted([(1, prompt), (1, longer), (batch, 2048), (batch + 1, 2048)])


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_part_that_is_too_large_spares_the_whole(share: float) -> None:
    """Where the part fits, or there is none, the whole is tried."""
    tried: list[Sizes] = []
    found = search(
        lambda *sizes: as_trial(count_bytes(*sizes)),
        tried,
        is_too_large=lambda *sizes: share * count_bytes(*sizes) > CAPACITY,
    )
    assert found == search(None)
    largest = [(1, found.limits.largest_prompt_tokens), (found.limits.largest_batch_size, 2048)]
    assert (tried == largest) == (share == 1)


def test_totals_beyond_the_capacity_are_asked_for_only_where_a_line_needs_them() -> None:
    """Up to a tenth more, a batch completes where it would take more: totals then say nothing."""
    asked: list[int] = []

    def try_number(batch_size: int, num_prompt_tokens: int) -> Trial:
        total_bytes = count_bytes(batch_size, num_prompt_tokens)
        return Trial(total_bytes, fits=total_bytes <= 1.1 * CAPACITY)

    def guess(batch_size: int, num_prompt_tokens: int) -> AnyTrial:
        trial = try_number(batch_size, num_prompt_tokens)
        if trial.total_bytes <= CAPACITY:
            return trial

        def count_total() -> int:
            asked.append(batch_size)
            return trial.total_bytes

        return LateTrial(count_total, fits=trial.fits, exceeded_bytes=CAPACITY)

    def find(guess_sizes: Callable[[int, int], AnyTrial | None] | None) -> FoundLimits:
        return search_limits(
            try_number,
            guess_sizes=guess_sizes,
            memory_bytes=CAPACITY,
            batch_size=1,
            num_prompt_tokens=2048,
            num_new_tokens=256,
            context=2304,
        )

    found = find(guess)
    assert found == find(None)
    # Trials confirm the guesses of the largest batch that fits and of the next one.
    largest = found.limits.largest_batch_size
    assert count_bytes(largest, 2048) > CAPACITY
    assert sorted(asked) == [largest, largest + 1]


@pytest.mark.parametrize("is_always_fitting", [False, True])
def test_guesses_that_stay_wrong_are_given_up(is_always_fitting: bool) -> None:
    guess = as_trial(0 if is_always_fitting else CAPACITY + 1)
    assert search(lambda *_: guess) == search(None)


@given(errors=st.dictionaries(st.integers(0, 30), st.integers(-2000, 2000), max_size=8))
def test_wrong_guesses_do_not_change_the_largest_batch(errors: dict[int, int]) -> None:
    """Bytes grow with each sequence, so there is one largest batch."""
    num_guesses = 0

    def guess(*sizes: int) -> Trial:
        nonlocal num_guesses
        num_guesses += 1
        return as_trial(count_bytes(*sizes) + errors.get(num_guesses, 0) * MIB)

    assert search(guess).limits.largest_batch_size == search(None).limits.largest_batch_size
