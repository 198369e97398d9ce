"""The rows that experts receive are those of the tokens that their outputs are added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from moetool.tracing.recording.watch.separate.block import Block
from moetool.tracing.recording.watch.separate.captures import hash_rows


def find_weightless(
    block: Block,
    is_chosen: torch.Tensor,
    numbers: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    received: Mapping[int, list[torch.Tensor]],
) -> torch.Tensor:
    """Return which experts ran on which tokens with a weight of zero, as routers may give it.

    Args:
        block: Named in errors.
        is_chosen: Whether an expert has a weight for a token. # (num_tokens, num_experts)
        numbers: The row of each expert that it has the weight for. # (num_tokens, num_experts)
        inputs: Tensors that the block may have dispatched. # each (num_tokens, width)
        received: By expert, the rows of each of its calls.

    Returns:
        # (num_tokens, num_experts)

    Raises:
        UntraceableError: A row with a weight is not the token's own, or it is unknown whose row has
            none.
    """
    by_expert = {
        index: torch.cat(
            [rows.detach().reshape(-1, rows.shape[-1]).to(is_chosen.device) for rows in calls]
        )
        for index, calls in received.items()
    }
    states = next(
        (
            s
            for s in (value.to(is_chosen.device) for value in inputs)
            if _are_own(s, by_expert, is_chosen, numbers)
        ),
        None,
    )  # (num_tokens, width)
    if states is None:
        raise block.unreadable("its experts receive other rows than its hidden states")
    found, hashes = torch.zeros_like(is_chosen), hash_rows(states)
    for index, rows in by_expert.items():
        if len(rows) >= len(states):
            # An expert that runs on every token says nothing about its choice.
            continue
        is_left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        is_left[numbers[is_chosen[:, index], index]] = False
        # Rows of empty slots hold zeros.
        is_left &= rows.ne(0).any(dim=1)
        for row in hash_rows(rows[is_left].to(states.dtype)):
            tokens = torch.nonzero((hashes == row) & ~is_chosen[:, index]).flatten()
            if len(tokens) == 1:
                found[tokens, index] = True
            elif len(tokens):
                raise block.unreadable("equal tokens reach an expert with a weight of zero")
    return found


def _are_own(
    states: torch.Tensor,
    rows: dict[int, torch.Tensor],
    is_chosen: torch.Tensor,
    numbers: torch.Tensor,
) -> bool:
    """Return whether every row with a weight is that of its token."""
    if len(states) != len(is_chosen):
        return False
    for index, received in rows.items():
        chosen = is_chosen[:, index]
        own = states[chosen].to(received.dtype)
        if not torch.equal(received[numbers[chosen, index]], own):
            return False
    return True
