"""The rows that experts receive are those of the tokens that their outputs are added to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from moetool.tracing.recording.watch.separate.block import Block, BlockCall
from moetool.tracing.recording.watch.separate.captures import hash_rows, iter_tensors
from moetool.tracing.recording.watch.separate.marked_run import Seen

# Roundings by which equal rows may differ in other places.
_ROUNDINGS = 32


def turn(output: torch.Tensor) -> torch.Tensor:
    """Return rows in another order."""
    return output.roll(1, dims=0) if output.dim() == 2 else output


def last_of(block: Block, call: BlockCall, index: int) -> str | None:
    """Return the path of the last module of an expert that ran; None if it did not run."""
    paths = [part.path for part in block.experts[index]]
    return next((path for path in reversed(call.order) if path in paths), None)


def check_received(block: Block, call: BlockCall, seen: Seen, turned: Seen | None) -> None:
    """Check that experts receive in a second run what they received in the call.

    Args:
        block: Named in errors.
        seen: The second run.
        turned: For experts that consist of several modules, one more with rows that are turned.

    Raises:
        UntraceableError: They don't, or their modules mix the rows of different tokens.
    """
    for index, members in enumerate(block.experts):
        paths = [part.path for part in members]
        first = next((path for path in call.order if path in paths), "")
        _check_same(block, call.received.get(first, []), seen.rows.get(index, []))
        if len(members) > 1:
            last = call.received.get(last_of(block, call, index) or "", [])
            _check_same(block, last, seen.last.get(index, []))
    if turned is None:
        return
    # The last module of an expert has to get the rows of the first, in the same order.
    for index, calls in seen.last.items():
        for rows, others in zip(map(turn, calls), turned.last.get(index, []), strict=True):
            # Vectorized code may round elements differently in other places of memory.
            error = (rows - others).abs().max() if rows.numel() else 0
            if error > _ROUNDINGS * torch.finfo(rows.dtype).eps * rows.abs().max():
                raise block.unreadable("its experts mix the rows of different tokens")


def _check_same(block: Block, rows: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    if len(rows) != len(others) or not all(map(torch.equal, rows, others)):
        raise block.unreadable("a second run sent tokens to other experts")


def list_states(call: BlockCall) -> list[torch.Tensor]:
    """Return rows that a block may have sent to its experts as they are. # each (num_tokens, width).

    They are what it was called with, and what its modules returned.
    """
    hidden = [] if call.hidden is None else [call.hidden]
    outputs = (returned.output for calls in call.returned.values() for returned in calls)
    return [
        value.detach().reshape(-1, value.shape[-1])
        for value in (*hidden, *iter_tensors(list(outputs)))
        if value.dim() and value.is_floating_point()
    ]


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
        if states.shape[1] != received.shape[1]:
            return False
        chosen = is_chosen[:, index]
        own = states[chosen].to(received.dtype)
        if not torch.equal(received[numbers[chosen, index]], own):
            return False
    return True
