"""Windows of prompts, and padded batches of prompts of similar length within a window.

Windows and batches depend only on the prompts' lengths, on their order and on the options. Every
process of a run, and every resumed run, puts the same batches through the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.tokens import TokenizedPrompt

# The prompts of a window are sorted by length together, and a run continues from the end of a
# window. Larger windows pad less; more windows divide better among processes.
NUM_WINDOWS = 32
BATCHES_PER_WINDOW = 4
# Host memory holds the decisions of a window, and the routers' scores if they are recorded.
TOKENS_PER_WINDOW = 65_536
TOKENS_PER_WINDOW_WITH_SCORES = 16_384
# A forward pass, however small, takes a GPU about as long as this many more slots would.
SLOTS_PER_PASS = 1_024


@dataclass(frozen=True)
class Window:
    """Consecutive prompts whose rows are written together.

    Attributes:
        index: Place among the windows of the run.
        start: Index of the first prompt.
        stop: Index after the last prompt.
    """

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class WindowPrompts:
    """The prompts of a window.

    Attributes:
        index: Of the window in the run.
        start: Index of its first prompt in the run.
        prompts: At least one.
    """

    index: int
    start: int
    prompts: Sequence[TokenizedPrompt]


@dataclass(frozen=True)
class Batch:
    """Prompts that go through the model together.

    Attributes:
        prompts: Index of each row's prompt in its window. # (batch_size,)
        input_ids: Padded on one side. # (batch_size, num_slots)
        attention_mask: 1 on real tokens. # (batch_size, num_slots)
    """

    prompts: NDArray[np.int32]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


def plan_windows(
    prompts: Sequence[TokenizedPrompt],
    *,
    batch_size: int | None,
    max_batch_tokens: int | None,
    num_new_tokens: int,
    most_tokens: int | None = None,
) -> list[Window]:
    """Return windows that hold every prompt once, in order.

    There are about `NUM_WINDOWS`. There are fewer where windows would have less than
    `BATCHES_PER_WINDOW` batches, and more where they would have over `most_tokens` tokens. A window
    exceeds this number only if a single batch does.

    Args:
        prompts: All of one run.
        batch_size: Most prompts of a batch; None for no limit.
        max_batch_tokens: Most tokens of a batch, see `make_batches`; None for no limit.
        num_new_tokens: Most tokens that each prompt is continued by.
        most_tokens: Most tokens of a window; None for `TOKENS_PER_WINDOW`.
    """
    most_tokens = TOKENS_PER_WINDOW if most_tokens is None else most_tokens
    sizes = [len(prompt.token_ids) + num_new_tokens for prompt in prompts]
    most = max_batch_tokens or sum(sizes)
    # Sums over all prompts before each index. A prompt fills at most one batch.
    tokens = [0, *accumulate(sizes)]
    filled = [0, *accumulate(min(size, most) for size in sizes)]
    num_wanted = -(-tokens[-1] // NUM_WINDOWS)

    def is_enough(start: int, stop: int) -> bool:
        """Return whether prompts fill the least number of batches, and a share of the run."""
        by_rows = 0 if batch_size is None else (stop - start) / batch_size
        by_tokens = 0 if max_batch_tokens is None else (filled[stop] - filled[start]) / most
        is_share = tokens[stop] - tokens[start] >= num_wanted
        return is_share and max(by_rows, by_tokens) >= BATCHES_PER_WINDOW

    def is_allowed(start: int, stop: int) -> bool:
        """Return whether a window may hold prompts: those of a single batch it always may."""
        num_tokens = tokens[stop] - tokens[start]
        return num_tokens <= most_tokens or (
            (batch_size is None or stop - start <= batch_size)
            and (max_batch_tokens is None or num_tokens <= max_batch_tokens)
        )

    starts = [0]
    for index in range(1, len(sizes)):
        if is_enough(starts[-1], index) or not is_allowed(starts[-1], index + 1):
            starts.append(index)
    # A rest of less than a window joins the one before it.
    has_rest = len(starts) > 1 and not is_enough(starts[-1], len(sizes))
    if has_rest and is_allowed(starts[-2], len(sizes)):
        starts.pop()
    stops = [*starts[1:], len(sizes)]
    bounds = zip(starts, stops, strict=True) if sizes else ()
    return [Window(index, start, stop) for index, (start, stop) in enumerate(bounds)]


def list_windows(prompts: Sequence[TokenizedPrompt], options: TraceOptions) -> list[WindowPrompts]:
    """Return the windows of a run, see `plan_windows`."""
    planned = plan_windows(
        prompts,
        batch_size=options.batch_size,
        max_batch_tokens=options.max_batch_tokens,
        num_new_tokens=options.max_new_tokens,
        most_tokens=TOKENS_PER_WINDOW_WITH_SCORES if options.with_probabilities else None,
    )
    return [
        WindowPrompts(each.index, each.start, prompts[each.start : each.stop]) for each in planned
    ]


def make_batches(
    window: Sequence[TokenizedPrompt],
    *,
    batch_size: int | None,
    max_batch_tokens: int | None = None,
    num_new_tokens: int = 0,
    pad_token_id: int,
    pad_side: Literal["left", "right"] = "right",
    without_pads: bool = False,
) -> Iterator[Batch]:
    """Yield a window's prompts in batches of similar length, the largest batch first.

    Prompts are divided so that pads and the number of forward passes together cost least. Because
    the largest batch comes first, a window that does not fit into memory fails at its start. Pads
    go to the right, where no real token of a causal model sees them and where they take no expert's
    capacity; `generate` needs them on the left, because it continues on the right.

    Args:
        window: At least one prompt.
        batch_size: Most prompts of a batch; None for no limit.
        max_batch_tokens: Most tokens of a batch, which are its rows times its columns, pads and
            new tokens included; None for no limit. A single prompt may have more.
        num_new_tokens: Most tokens that each prompt is continued by.
        pad_token_id: Fills the shorter rows.
        pad_side: Where the pads go.
        without_pads: Give all prompts of a batch the same length.
    """
    lengths = np.array([len(prompt.token_ids) for prompt in window])  # (num_prompts,)
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    changes = np.flatnonzero(np.diff(lengths[order])) + 1
    alike = np.split(order, changes) if without_pads else [order]
    batches = [
        rows
        for one in alike
        for rows in _divide(
            one,
            lengths[one] + num_new_tokens,
            most_rows=len(window) if batch_size is None else batch_size,
            most_slots=max_batch_tokens,
            slots_per_batch=SLOTS_PER_PASS * (1 + num_new_tokens),
        )
    ]
    for rows in sorted(batches, key=lambda rows: -len(rows) * (lengths[rows[0]] + num_new_tokens)):
        num_slots = int(lengths[rows[0]])
        input_ids = np.full((len(rows), num_slots), pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), num_slots), dtype=np.int64)
        for row, prompt in enumerate(rows):
            length = lengths[prompt]
            slots = slice(0, length) if pad_side == "right" else slice(num_slots - length, None)
            input_ids[row, slots] = window[prompt].token_ids
            attention_mask[row, slots] = 1
        yield Batch(prompts=rows, input_ids=input_ids, attention_mask=attention_mask)


def _divide(
    prompts: NDArray[np.int32],
    widths: NDArray[np.int64],
    *,
    most_rows: int,
    most_slots: int | None,
    slots_per_batch: int,
) -> list[NDArray[np.int32]]:
    """Return prompts in the batches of lowest cost, by dynamic programming.

    The cost of a division is its slots and a number for each batch. Some best division has only
    batches of neighbours in the order of length.

    Args:
        prompts: From the longest to the shortest. # (num_prompts,)
        widths: The columns that each needs. # (num_prompts,)
        most_rows: Most prompts of a batch.
        most_slots: Most rows times columns of a batch of several prompts; None for no limit.
        slots_per_batch: The cost of a batch besides its slots.
    """
    if most_slots is None:
        most_slots = len(prompts) * int(widths[0])
    # The cost of the best division of the prompts before each index, and where its last batch starts.
    costs, starts = np.zeros((2, len(prompts) + 1), dtype=np.int64)
    places = np.arange(len(prompts))
    first = 0
    for stop in range(1, len(prompts) + 1):
        while first < stop - 1 and (
            stop - first > most_rows or (stop - first) * widths[first] > most_slots
        ):
            first += 1
        totals = costs[first:stop] + (stop - places[first:stop]) * widths[first:stop]
        # The last of equals, which fills the batches before it.
        last = int(np.argmin(totals[::-1])) + 1
        costs[stop] = totals[-last] + slots_per_batch
        # With more prompts, no earlier start is ever better: a batch that starts earlier is wider.
        starts[stop] = first = stop - last
    batches, stop = [], len(prompts)
    while stop > 0:
        batches.append(prompts[starts[stop] : stop])
        stop = int(starts[stop])
    return batches[::-1]
