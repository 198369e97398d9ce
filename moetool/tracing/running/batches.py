"""Padded batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moetool.tracing.prompts.tokens import TokenizedPrompt

# The prompts of a window are sorted by length together, and their rows are written together. Larger
# windows pad less and hold more rows in memory.
BATCHES_PER_WINDOW = 16
TOKENS_PER_WINDOW = 65_536


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


def split_windows(
    prompts: Sequence[TokenizedPrompt], *, batch_size: int
) -> Iterator[Sequence[TokenizedPrompt]]:
    """Yield runs of consecutive prompts, each short enough for memory to hold it and its rows."""
    start, num_tokens = 0, 0
    for index, prompt in enumerate(prompts):
        is_full = index - start >= batch_size * BATCHES_PER_WINDOW
        is_heavy = num_tokens + len(prompt.token_ids) > TOKENS_PER_WINDOW
        if index > start and (is_full or is_heavy):
            yield prompts[start:index]
            start, num_tokens = index, 0
        num_tokens += len(prompt.token_ids)
    if start < len(prompts):
        yield prompts[start:]


def make_batches(
    window: Sequence[TokenizedPrompt],
    *,
    batch_size: int,
    pad_token_id: int,
    pad_side: Literal["left", "right"] = "right",
    without_pads: bool = False,
) -> Iterator[Batch]:
    """Yield a window's prompts in batches of similar length, longest first.

    Because the longest batch comes first, a run that does not fit into memory fails at its start.
    Pads go to the right, where no real token of a causal model sees them and where they take no
    expert's capacity; `generate` needs them on the left, because it continues on the right.
    With `without_pads`, all prompts of a batch have the same length.
    """
    lengths = np.array([len(prompt.token_ids) for prompt in window])  # (num_prompts,)
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    changes = np.flatnonzero(np.diff(lengths[order])) + 1
    alike = np.split(order, changes) if without_pads else [order]
    for rows in (
        one[at : at + batch_size] for one in alike for at in range(0, len(one), batch_size)
    ):
        num_slots = int(lengths[rows].max())
        input_ids = np.full((len(rows), num_slots), pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), num_slots), dtype=np.int64)
        for row, prompt in enumerate(rows):
            length = lengths[prompt]
            slots = slice(0, length) if pad_side == "right" else slice(num_slots - length, None)
            input_ids[row, slots] = window[prompt].token_ids
            attention_mask[row, slots] = 1
        yield Batch(prompts=rows, input_ids=input_ids, attention_mask=attention_mask)
