from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.on_gpus import Limits
from moetool.memory.fitting.search import FoundLimits, search_limits, search_longest_prompt
from moetool.memory.fitting.trials import Trial

GIB = 2**30
MIB = 2**20
BYTES_PER_TOKEN = 196_608
BYTES_PER_SEQUENCE = 700 * MIB


class _Simulation:
    """A stand-in for a simulation, which remembers its calls."""

    def __init__(self, count_bytes: Callable[[int, int], int]) -> None:
        self._count_bytes = count_bytes
        self.calls: list[tuple[int, int]] = []

    def __call__(self, batch_size: int, num_prompt_tokens: int) -> int:
        self.calls.append((batch_size, num_prompt_tokens))
        return self._count_bytes(batch_size, num_prompt_tokens)


def _count_as_mixtral(batch_size: int, num_prompt_tokens: int) -> int:
    per_sequence = num_prompt_tokens * BYTES_PER_TOKEN + BYTES_PER_SEQUENCE
    return 87 * GIB + batch_size * per_sequence


def _find(
    simulation: Callable[[int, int], int],
    size: str,
    *,
    batch_size: int = 1,
    num_prompt_tokens: int = 2048,
    context: int | None = None,
) -> Limits:
    return _search(
        simulation,
        size,
        batch_size=batch_size,
        num_prompt_tokens=num_prompt_tokens,
        context=context,
    ).limits


def _search(
    count_bytes: Callable[[int, int], int],
    size: str,
    *,
    batch_size: int = 1,
    num_prompt_tokens: int = 2048,
    num_new_tokens: int = 256,
    context: int | None = None,
    most_tokens_at_once: int | None = None,
) -> FoundLimits:
    memory_bytes = find_gpu(size).memory_bytes

    def try_sizes(batch_size: int, num_prompt_tokens: int) -> Trial:
        total_bytes = count_bytes(batch_size, num_prompt_tokens)
        return Trial(total_bytes, fits=total_bytes <= memory_bytes)

    return search_limits(
        try_sizes,
        memory_bytes=memory_bytes,
        batch_size=batch_size,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        context=context,
        most_tokens_at_once=most_tokens_at_once,
    )


def test_limits_of_a_straight_line_are_as_by_hand() -> None:
    limits = _find(_count_as_mixtral, "100GiB", batch_size=2)
    # 13 GiB for two sequences, less 700 MiB each.
    longest = (13 * GIB // 2 - BYTES_PER_SEQUENCE) // BYTES_PER_TOKEN
    assert limits.largest_prompt_tokens == longest == 31_765
    assert limits.largest_batch_size == 13 * GIB // (2048 * BYTES_PER_TOKEN + BYTES_PER_SEQUENCE)
    assert not limits.is_whole_context


def test_the_context_ends_a_prompt_that_would_fit() -> None:
    limits = _find(_count_as_mixtral, "140GiB", context=32_768)
    assert limits.largest_prompt_tokens == 32_768 - 256
    assert limits.is_whole_context


def test_a_context_that_is_just_out_of_reach_is_not_a_limit() -> None:
    size = 87 * GIB + BYTES_PER_SEQUENCE + 4000 * BYTES_PER_TOKEN
    limits = _find(_count_as_mixtral, f"{size}B", context=256 + 4001)
    assert 4001 - 64 <= limits.largest_prompt_tokens <= 4000
    assert not limits.is_whole_context


def test_a_context_shorter_than_the_new_tokens_has_no_prompt() -> None:
    limits = _find(_count_as_mixtral, "140GiB", context=256)
    assert limits.largest_prompt_tokens == 0
    assert not limits.is_whole_context


def test_a_prompt_longer_than_the_context_is_not_simulated() -> None:
    simulation = _Simulation(_count_as_mixtral)
    limits = _find(simulation, "140GiB", batch_size=3, num_prompt_tokens=8192, context=4096)
    assert limits.largest_prompt_tokens == 4096 - 256
    of_prompts = [tokens for _, tokens in simulation.calls if tokens != 8192]
    assert of_prompts == [4096 - 256]


def test_nothing_fits_if_the_weights_are_too_large() -> None:
    simulation = _Simulation(_count_as_mixtral)
    limits = _find(simulation, "80GiB")
    assert (limits.largest_prompt_tokens, limits.largest_batch_size) == (0, 0)
    assert not limits.is_whole_context
    assert len(simulation.calls) == 2


def test_a_batch_and_a_prompt_smaller_than_those_asked_for_are_found() -> None:
    limits = _find(_count_as_mixtral, "90GiB", batch_size=8)
    assert limits.largest_batch_size == 2
    assert limits.largest_prompt_tokens == 0
    limits = _find(_count_as_mixtral, "88GiB", num_prompt_tokens=4096)
    assert limits.largest_prompt_tokens == (GIB - BYTES_PER_SEQUENCE) // BYTES_PER_TOKEN
    assert limits.largest_batch_size == 0


def test_one_token_and_one_sequence_may_be_all_that_fits() -> None:
    size = _count_as_mixtral(1, 1)
    assert _find(_count_as_mixtral, f"{size}B").largest_prompt_tokens == 1
    limits = _find(_count_as_mixtral, f"{size - 1}B")
    assert limits.largest_prompt_tokens == 0
    limits = _find(_count_as_mixtral, f"{size}B", num_prompt_tokens=1)
    assert limits.largest_batch_size == 1


def test_a_model_without_a_growing_cache_ends_at_the_most_that_is_tried() -> None:
    simulation = _Simulation(lambda _batch_size, _num_prompt_tokens: 5 * GIB)
    limits = _find(simulation, "24GiB")
    assert limits.largest_prompt_tokens == 2**27
    assert limits.largest_batch_size == 2**20
    assert not limits.is_whole_context
    assert len(simulation.calls) <= 12


def test_a_search_that_ends_at_the_most_tokens_says_so() -> None:
    found = _search(_count_as_mixtral, "140GiB", most_tokens_at_once=2**14)
    assert found.limits.largest_prompt_tokens == 2**14 - 256
    assert found.limits.largest_batch_size == 2**14 // (2048 + 256)
    assert found.is_prompt_cut
    assert found.is_batch_cut


def test_a_search_that_ends_at_what_fits_or_at_the_context_is_not_cut() -> None:
    found = _search(_count_as_mixtral, "88GiB", most_tokens_at_once=2**20)
    assert not found.is_prompt_cut
    assert not found.is_batch_cut
    found = _search(_count_as_mixtral, "140GiB", most_tokens_at_once=2**14, context=2**14)
    assert found.limits.is_whole_context
    assert not found.is_prompt_cut


def test_a_search_ends_at_a_size_that_is_too_large_to_try() -> None:
    memory_bytes = find_gpu("140GiB").memory_bytes

    def try_sizes(batch_size: int, num_prompt_tokens: int) -> Trial | None:
        total_bytes = _count_as_mixtral(batch_size, num_prompt_tokens)
        is_too_large = batch_size * num_prompt_tokens > 10_000
        return None if is_too_large else Trial(total_bytes, fits=total_bytes <= memory_bytes)

    found = search_limits(
        try_sizes,
        memory_bytes=memory_bytes,
        batch_size=1,
        num_prompt_tokens=2048,
        num_new_tokens=256,
        context=None,
    )
    assert 2048 <= found.limits.largest_prompt_tokens <= 10_000
    assert 1 <= found.limits.largest_batch_size <= 10_000 // 2048
    assert found.is_prompt_cut
    assert found.is_batch_cut


def test_the_sizes_that_are_asked_for_are_tried_however_large() -> None:
    simulation = _Simulation(_count_as_mixtral)
    found = _search(simulation, "140GiB", batch_size=4, most_tokens_at_once=8)
    assert found.limits.largest_batch_size == 4
    assert found.limits.largest_prompt_tokens == 2048
    assert found.is_prompt_cut
    assert found.is_batch_cut


def test_no_scenario_is_simulated_twice() -> None:
    simulation = _Simulation(_count_as_mixtral)
    _find(simulation, "100GiB")
    assert len(set(simulation.calls)) == len(simulation.calls)


def _count_with_reserve(batch_size: int, num_prompt_tokens: int) -> int:
    """Return the reserved bytes if a quarter of the reserve above the weights is free."""
    return 87 * GIB + (_count_as_mixtral(batch_size, num_prompt_tokens) - 87 * GIB) * 5 // 4


def _give_back_reserve(simulation: _Simulation, memory_bytes: int) -> Callable[[int, int], Trial]:
    """Return trials in which the free part of the reserve is given back where it has to be."""

    def try_sizes(batch_size: int, num_prompt_tokens: int) -> Trial:
        total_bytes = simulation(batch_size, num_prompt_tokens)
        least_bytes = _count_as_mixtral(batch_size, num_prompt_tokens)
        return Trial(total_bytes, fits=least_bytes <= memory_bytes)

    return try_sizes


@pytest.mark.parametrize("size", ["88GiB", "89GiB", "100GiB", "140GiB"])
def test_what_runs_through_in_less_than_it_would_take_is_within_the_limits(size: str) -> None:
    gpu = find_gpu(size)
    simulation = _Simulation(_count_with_reserve)

    try_sizes = _give_back_reserve(simulation, gpu.memory_bytes)
    limits = search_limits(
        try_sizes,
        memory_bytes=gpu.memory_bytes,
        batch_size=1,
        num_prompt_tokens=2048,
        num_new_tokens=256,
        context=None,
    ).limits
    without_reserve = _find(_count_as_mixtral, size)
    with_reserve = _find(_count_with_reserve, size)
    assert limits.largest_batch_size == without_reserve.largest_batch_size
    tokens = limits.largest_prompt_tokens
    step = max(64, tokens // 100)
    if tokens:
        assert _count_as_mixtral(1, tokens) <= gpu.memory_bytes
    assert _count_as_mixtral(1, tokens + step) > gpu.memory_bytes
    assert limits.largest_prompt_tokens >= with_reserve.largest_prompt_tokens
    assert len([call for call in simulation.calls if call[0] == 1]) <= 16
    assert len([call for call in simulation.calls if call[1] == 2048]) <= 12


@pytest.mark.parametrize("fits_whole_context", [True, False])
def test_the_whole_context_is_tried_once_where_less_fits_than_it_would_take(
    fits_whole_context: bool,
) -> None:
    """With a quarter of the reserve free, less than 1.25 times the tokens of the crossing fit."""
    gpu = find_gpu("100GiB")
    crossing = _find(_count_with_reserve, "100GiB").largest_prompt_tokens
    context = 256 + (crossing * 6 // 5 if fits_whole_context else crossing * 3 // 2)
    simulation = _Simulation(_count_with_reserve)

    try_sizes = _give_back_reserve(simulation, gpu.memory_bytes)
    prompt = search_longest_prompt(
        lambda tokens: try_sizes(1, tokens),
        memory_bytes=gpu.memory_bytes,
        batch_size=1,
        num_prompt_tokens=2048,
        num_new_tokens=256,
        context=context,
    )
    tried = [tokens for _, tokens in simulation.calls]
    assert tried.count(context - 256) == 1
    assert prompt.is_whole_context == fits_whole_context
    if fits_whole_context:
        assert tried[-1] == context - 256
        assert len(tried) <= 5
    else:
        assert _count_as_mixtral(1, prompt.num_tokens) <= gpu.memory_bytes
        step = max(64, prompt.num_tokens // 100)
        assert _count_as_mixtral(1, prompt.num_tokens + step) > gpu.memory_bytes


def _count_as_eager(batch_size: int, num_prompt_tokens: int) -> int:
    per_sequence = num_prompt_tokens * 200_000 + num_prompt_tokens**2 * 64
    return 10 * GIB + batch_size * per_sequence


def _count_as_two_phases(batch_size: int, num_prompt_tokens: int) -> int:
    decode = batch_size * (700 * MIB + num_prompt_tokens * 131_072)
    prefill = batch_size * num_prompt_tokens * 400_000
    return 20 * GIB + max(decode, prefill)


def _count_in_segments(batch_size: int, num_prompt_tokens: int) -> int:
    return -(-_count_as_mixtral(batch_size, num_prompt_tokens) // (20 * MIB)) * 20 * MIB


@pytest.mark.parametrize(
    ("count_bytes", "size"),
    [
        (_count_as_mixtral, "89GiB"),
        (_count_as_mixtral, "140GiB"),
        (_count_as_eager, "24GiB"),
        (_count_as_eager, "140GiB"),
        (_count_as_two_phases, "24GiB"),
        (_count_as_two_phases, "80GiB"),
        (_count_in_segments, "96GiB"),
    ],
)
def test_bytes_as_models_take_them_are_simulated_a_few_times(
    count_bytes: Callable[[int, int], int], size: str
) -> None:
    simulation = _Simulation(count_bytes)
    _find(simulation, size)
    of_prompts = [call for call in simulation.calls if call[0] == 1]
    of_batches = [call for call in simulation.calls if call[1] == 2048]
    assert len(of_prompts) <= 10
    assert len(of_batches) <= 8


@given(
    steps=st.lists(st.integers(0, 4 * GIB), min_size=1, max_size=30),
    capacity=st.integers(1, 40 * GIB),
    start=st.integers(1, 5000),
    slope=st.sampled_from([0, 1, 10_000, 3_000_000]),
)
@example(steps=[4 * GIB, 0], capacity=6 * GIB, start=1, slope=0)
def test_what_is_returned_was_seen_to_fit_and_what_is_above_was_not(
    steps: list[int], capacity: int, start: int, slope: int
) -> None:
    # Uneven in any way, not even growing: a new level every 300 of both sizes.
    def count_bytes(batch_size: int, num_prompt_tokens: int) -> int:
        size = batch_size * 37 + num_prompt_tokens
        return steps[size // 300 % len(steps)] + slope * size

    simulation = _Simulation(count_bytes)
    limits = _search(
        simulation,
        f"{capacity}B",
        batch_size=start,
        num_prompt_tokens=start,
        num_new_tokens=1,
        context=100_001,
    ).limits
    seen = {call: count_bytes(*call) <= capacity for call in simulation.calls}
    batches = {batch: fits for (batch, tokens), fits in seen.items() if tokens == start}
    prompts = {tokens: fits for (batch, tokens), fits in seen.items() if batch == start}
    _assert_limit(batches, limits.largest_batch_size, largest=2**20, step=1)
    step = max(64, limits.largest_prompt_tokens // 100)
    _assert_limit(prompts, limits.largest_prompt_tokens, largest=100_000, step=step)
    # Eight along lines, then halving: a step is 1 of 2^20 at the least.
    assert len(batches) <= 9 + 20


def _assert_limit(seen: dict[int, bool], limit: int, *, largest: int, step: int) -> None:
    assert all(1 <= number <= largest for number in seen)
    if limit == 0:
        assert not seen[1]
        return
    assert seen[limit]
    if limit < largest:
        above = [number for number, fits in seen.items() if not fits and number > limit]
        assert min(above) - limit <= (step if limit else 1)


def test_a_longer_prompt_never_needs_a_larger_step_than_one_percent() -> None:
    sizes = [f"{gib}GiB" for gib in (89, 95, 110, 140)]
    longest = [_find(_count_as_eager, size).largest_prompt_tokens for size in sizes]
    assert all(one < other for one, other in pairwise(longest))
    for size, tokens in zip(sizes, longest, strict=True):
        assert _count_as_eager(1, tokens) <= find_gpu(size).memory_bytes
        assert _count_as_eager(1, tokens + max(64, tokens // 100)) > find_gpu(size).memory_bytes
