"""Windows and batches hold every prompt once, and pads are marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.batches import make_batches, split_windows

BATCHES_PER_WINDOW = 3
TOKENS_PER_WINDOW = 20
PAD = 0

# Short prompts fill a window by their number, long ones by their tokens.
lengths_of_prompts = st.lists(st.integers(1, 3) | st.integers(1, 30), max_size=40)
batch_sizes = st.integers(1, 5)


@pytest.fixture(scope="module", autouse=True)
def small_windows() -> Iterator[None]:
    """Make windows so small that a few prompts fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moetool.tracing.running.batches.BATCHES_PER_WINDOW", BATCHES_PER_WINDOW)
        patch.setattr("moetool.tracing.running.batches.TOKENS_PER_WINDOW", TOKENS_PER_WINDOW)
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


def ids_of(prompts: Sequence[TokenizedPrompt]) -> list[str]:
    return [prompt.prompt.prompt_id for prompt in prompts]


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
@example([1] * 10, 2)
def test_windows_hold_every_prompt_once_and_in_order(lengths: list[int], batch_size: int) -> None:
    prompts = make_prompts(lengths)
    windows = list(split_windows(prompts, batch_size=batch_size))
    assert [name for window in windows for name in ids_of(window)] == ids_of(prompts)
    assert all(windows)


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
@example([1] * 10, 2)
def test_a_window_keeps_to_its_limits_unless_one_prompt_is_beyond_them(
    lengths: list[int], batch_size: int
) -> None:
    for window in split_windows(make_prompts(lengths), batch_size=batch_size):
        assert len(window) <= batch_size * BATCHES_PER_WINDOW
        num_tokens = sum(len(prompt.token_ids) for prompt in window)
        assert num_tokens <= TOKENS_PER_WINDOW or len(window) == 1


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
@example([1] * 10, 2)
def test_a_window_ends_only_where_the_next_prompt_does_not_fit(
    lengths: list[int], batch_size: int
) -> None:
    windows = list(split_windows(make_prompts(lengths), batch_size=batch_size))
    for window, following in pairwise(windows):
        num_tokens = sum(len(prompt.token_ids) for prompt in [*window, following[0]])
        is_full = len(window) == batch_size * BATCHES_PER_WINDOW
        assert is_full or num_tokens > TOKENS_PER_WINDOW


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
def test_batches_hold_every_prompt_of_a_window_once(lengths: list[int], batch_size: int) -> None:
    prompts = make_prompts(lengths)
    batches = list(make_batches(prompts, batch_size=batch_size, pad_token_id=PAD))
    rows = [row for batch in batches for row in batch.prompts.tolist()]
    assert sorted(rows) == list(range(len(prompts)))
    assert all(len(batch.prompts) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch.prompts) <= batch_size for batch in batches)


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
def test_pads_stand_only_on_the_right_of_a_prompts_tokens(
    lengths: list[int], batch_size: int
) -> None:
    prompts = make_prompts(lengths)
    for batch in make_batches(prompts, batch_size=batch_size, pad_token_id=PAD):
        num_slots = batch.input_ids.shape[1]
        assert batch.attention_mask.shape == batch.input_ids.shape
        for prompt, ids, mask in zip(
            batch.prompts, batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True
        ):
            real = prompts[prompt].token_ids.tolist()
            num_pads = num_slots - len(real)
            assert ids == real + [PAD] * num_pads
            assert mask == [1] * len(real) + [0] * num_pads


@settings(deadline=None)
@given(lengths_of_prompts, batch_sizes)
def test_a_batch_is_as_wide_as_its_longest_prompt_and_the_longest_comes_first(
    lengths: list[int], batch_size: int
) -> None:
    batches = list(make_batches(make_prompts(lengths), batch_size=batch_size, pad_token_id=PAD))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == [max(lengths[row] for row in batch.prompts) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    in_turn = [lengths[row] for batch in batches for row in batch.prompts]
    assert in_turn == sorted(lengths, reverse=True)


def test_prompts_of_one_length_keep_their_order() -> None:
    batches = make_batches(make_prompts([4, 4, 4, 4]), batch_size=3, pad_token_id=PAD)
    assert [batch.prompts.tolist() for batch in batches] == [[0, 1, 2], [3]]
