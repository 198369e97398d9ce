"""Windows and batches hold every prompt once, keep to their limits, and mark pads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.batches import Batch, Window, make_batches, plan_windows

NUM_WINDOWS = 4
BATCHES_PER_WINDOW = 3
TOKENS_PER_WINDOW = 40
SLOTS_PER_PASS = 2
PAD = 0


class Limits(NamedTuple):
    """The options that windows and batches depend on."""

    batch_size: int | None
    max_batch_tokens: int | None
    num_new_tokens: int


lengths_of_prompts = st.lists(st.integers(1, 3) | st.integers(1, 30), max_size=40)
some_lengths = st.lists(st.integers(1, 3) | st.integers(1, 30), min_size=1, max_size=25)
any_limits = st.builds(
    Limits,
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 60),
    st.just(0) | st.integers(0, 9),
)


@pytest.fixture(scope="module", autouse=True)
def small_windows() -> Iterator[None]:
    """Make windows so small that a few prompts fill several."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NUM_WINDOWS", "BATCHES_PER_WINDOW", "TOKENS_PER_WINDOW", "SLOTS_PER_PASS"):
            patch.setattr(f"moetool.tracing.running.batches.{name}", globals()[name])
        yield


def make_prompts(lengths: Sequence[int]) -> list[TokenizedPrompt]:
    """Return prompts whose ids differ from the pad and from one another."""
    first = np.cumsum([1, *lengths])
    return [
        TokenizedPrompt(
            prompt=Prompt(prompt_id=str(number), domain="prose", text="…", origin=f"a:{number}"),
            token_ids=np.arange(start, start + length, dtype=np.int32),
            was_cut=False,
        )
        for number, (start, length) in enumerate(zip(first, lengths, strict=False))
    ]


def plan(lengths: Sequence[int], limits: Limits) -> list[Window]:
    return plan_windows(make_prompts(lengths), **limits._asdict())


def batches_of(
    lengths: Sequence[int], limits: Limits, *, without_pads: bool = False
) -> list[Batch]:
    made = make_batches(
        make_prompts(lengths), **limits._asdict(), pad_token_id=PAD, without_pads=without_pads
    )
    return list(made)


def count_slots(lengths: Sequence[int], num_new_tokens: int) -> int:
    return len(lengths) * (max(lengths) + num_new_tokens)


def fits(lengths: Sequence[int], limits: Limits) -> bool:
    """Return whether prompts may go through the model together."""
    has_rows = limits.batch_size is None or len(lengths) <= limits.batch_size
    slots = count_slots(lengths, limits.num_new_tokens)
    has_slots = limits.max_batch_tokens is None or slots <= limits.max_batch_tokens
    return len(lengths) == 1 or (has_rows and has_slots)


def cut_in_turn(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Fill one batch after the other with lengths as they come."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if batches[-1] and not fits([*batches[-1], length], limits):
            batches.append([])
        batches[-1].append(length)
    return batches


def cost_of(batches: Sequence[Sequence[int]], limits: Limits) -> int:
    """Return the slots of batches, and what their passes cost: one, and one for each new token."""
    num_new = limits.num_new_tokens
    return sum(count_slots(batch, num_new) + SLOTS_PER_PASS * (1 + num_new) for batch in batches)


def lowest_cost(lengths: Sequence[int], limits: Limits) -> int:
    """Return the cost of the best division of a set of lengths, by trying all."""

    def divide(rest: tuple[int, ...]) -> Iterator[list[list[int]]]:
        if not rest:
            yield []
            return
        for parts in divide(rest[1:]):
            yield [[rest[0]], *parts]
            for index, part in enumerate(parts):
                yield [*parts[:index], [rest[0], *part], *parts[index + 1 :]]

    return min(
        cost_of(parts, limits)
        for parts in divide(tuple(lengths))
        if all(fits(part, limits) for part in parts)
    )


@settings(deadline=None)
@given(lengths_of_prompts, any_limits)
@example([1] * 30, Limits(2, None, 0))
def test_windows_hold_every_prompt_once_and_in_order(lengths: list[int], limits: Limits) -> None:
    windows = plan(lengths, limits)
    assert [window.index for window in windows] == list(range(len(windows)))
    held = [prompt for window in windows for prompt in range(window.start, window.stop)]
    assert held == list(range(len(lengths)))
    assert all(window.start < window.stop for window in windows)


@settings(deadline=None)
@given(lengths_of_prompts, any_limits)
@example([1] * 30, Limits(2, None, 0))
@example([30] * 9, Limits(3, None, 0))
def test_a_window_has_its_tokens_unless_one_batch_has_more(
    lengths: list[int], limits: Limits
) -> None:
    for window in plan(lengths, limits):
        own = lengths[window.start : window.stop]
        num_tokens = sum(own) + limits.num_new_tokens * len(own)
        is_batch = (limits.batch_size is None or len(own) <= limits.batch_size) and (
            limits.max_batch_tokens is None or num_tokens <= limits.max_batch_tokens
        )
        assert num_tokens <= TOKENS_PER_WINDOW or is_batch or len(own) == 1


@settings(deadline=None)
@given(lengths_of_prompts, any_limits)
@example([1] * 30, Limits(2, None, 0))
@example([2] * 21, Limits(None, 4, 0))
@example([1, 1], Limits(None, 1, 2))
def test_a_window_ends_where_it_has_enough_batches_or_is_full(
    lengths: list[int], limits: Limits
) -> None:
    windows = plan(lengths, limits)
    share = sum(length + limits.num_new_tokens for length in lengths) / NUM_WINDOWS
    for window in windows[:-1]:
        own = lengths[window.start : window.stop]
        num_batches = len(batches_of(own, limits))
        longer = [*own, lengths[window.stop]]
        num_longer = sum(longer) + limits.num_new_tokens * len(longer)
        is_share = sum(own) + limits.num_new_tokens * len(own) >= share
        assert (num_batches >= BATCHES_PER_WINDOW and is_share) or num_longer > TOKENS_PER_WINDOW


def test_a_run_of_many_prompts_has_about_the_wanted_number_of_windows() -> None:
    windows = plan([1] * 100, Limits(2, None, 0))
    assert [window.stop - window.start for window in windows] == [25] * NUM_WINDOWS


def test_a_short_rest_joins_the_last_window() -> None:
    windows = plan([1] * 14, Limits(2, None, 0))
    assert [window.stop - window.start for window in windows] == [6, 8]


def test_a_batch_larger_than_a_window_stays_whole() -> None:
    windows = plan([20] * 12, Limits(6, None, 0))
    assert [window.stop - window.start for window in windows] == [6, 6]
    windows = plan([20] * 12, Limits(None, 80, 0))
    assert [window.stop - window.start for window in windows] == [4, 4, 4]


@settings(deadline=None)
@given(some_lengths, any_limits, st.booleans())
def test_batches_hold_every_prompt_of_a_window_once_and_keep_to_the_limits(
    lengths: list[int],
    limits: Limits,
    without_pads: bool,
) -> None:
    batches = batches_of(lengths, limits, without_pads=without_pads)
    rows = [row for batch in batches for row in batch.prompts.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[row] for row in batch.prompts]
        assert fits(own, limits)
        assert batch.input_ids.shape == batch.attention_mask.shape == (len(own), max(own))
        assert not without_pads or len(set(own)) == 1


@settings(deadline=None)
@given(some_lengths, any_limits)
@example([10, 10, 1, 1], Limits(3, None, 0))
@example([1, 1, 10], Limits(2, None, 0))
def test_batches_never_pad_more_than_in_the_order_given_unless_they_save_passes(
    lengths: list[int], limits: Limits
) -> None:
    batches = [[lengths[row] for row in batch.prompts] for batch in batches_of(lengths, limits)]
    in_turn = cut_in_turn(lengths, limits)
    assert cost_of(batches, limits) <= cost_of(in_turn, limits)
    if len(batches) >= len(in_turn):
        slots, slots_in_turn = (
            sum(count_slots(batch, 0) for batch in each) for each in (batches, in_turn)
        )
        assert slots <= slots_in_turn


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), any_limits)
@example([10, 10, 1, 1], Limits(3, None, 0))
@example([50, 90, 10], Limits(None, 100, 0))
@example([9, 9, 8, 7, 1, 1], Limits(None, 20, 3))
def test_no_division_costs_less(lengths: list[int], limits: Limits) -> None:
    batches = [[lengths[row] for row in batch.prompts] for batch in batches_of(lengths, limits)]
    assert cost_of(batches, limits) == lowest_cost(lengths, limits)


@settings(deadline=None)
@given(some_lengths, any_limits, st.booleans())
def test_the_largest_batch_comes_first(
    lengths: list[int],
    limits: Limits,
    without_pads: bool,
) -> None:
    sizes = [
        count_slots([lengths[row] for row in batch.prompts], limits.num_new_tokens)
        for batch in batches_of(lengths, limits, without_pads=without_pads)
    ]
    assert sizes == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(some_lengths, st.integers(1, 5), st.sampled_from(["left", "right"]))
def test_pads_stand_only_on_one_side_of_a_prompts_tokens(
    lengths: list[int], batch_size: int, pad_side: str
) -> None:
    prompts = make_prompts(lengths)
    side: dict[str, object] = {"pad_side": pad_side}
    for batch in make_batches(prompts, batch_size=batch_size, pad_token_id=PAD, **side):  # type: ignore[arg-type]
        num_slots = batch.input_ids.shape[1]
        for prompt, ids, mask in zip(
            batch.prompts, batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True
        ):
            real = prompts[prompt].token_ids.tolist()
            pads, ones = [PAD] * (num_slots - len(real)), [1] * len(real)
            is_left = pad_side == "left"
            assert ids == (pads + real if is_left else real + pads)
            assert mask == (pads + ones if is_left else ones + pads)


def test_prompts_of_one_length_keep_their_order() -> None:
    batches = make_batches(make_prompts([4, 4, 4, 4]), batch_size=3, pad_token_id=PAD)
    assert [batch.prompts.tolist() for batch in batches] == [[0, 1, 2], [3]]
