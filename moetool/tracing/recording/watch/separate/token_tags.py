"""Hidden states that carry the numbers of their tokens."""

from __future__ import annotations

import torch

# A token's number is written in digits, one per column: bfloat16 holds whole numbers up to 256.
_DIGIT_BASE = 256
_NUM_DIGITS = 4
# Results for rows that carry no token's number: rows of an empty slot, and any others.
EMPTY, STRANGE = -1, -2


def tag_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """Return hidden states of the same shape and dtype that carry their token's number, plus one."""
    width = hidden.shape[-1]
    numbers = torch.arange(1, hidden.numel() // width + 1, device=hidden.device)
    tagged = hidden.new_zeros(len(numbers), width)  # (num_slots, hidden_size)
    for digit in range(min(_NUM_DIGITS, width)):
        tagged[:, digit] = (numbers // _DIGIT_BASE**digit) % _DIGIT_BASE
    return tagged.view(hidden.shape)


def read_tags(rows: torch.Tensor) -> torch.Tensor:
    """Return the token whose number each row carries; `EMPTY` for zeros, `STRANGE` for any other.

    Args:
        rows: # (num_rows, hidden_size)

    Returns:
        # (num_rows,)
    """
    flat = rows.reshape(-1, rows.shape[-1]).double()
    digits, rest = flat[:, :_NUM_DIGITS], flat[:, _NUM_DIGITS:]
    is_tag = (
        (digits == digits.round()).all(dim=1)
        & (digits >= 0).all(dim=1)
        & (digits < _DIGIT_BASE).all(dim=1)
        & (rest == 0).all(dim=1)
    )
    scale = torch.tensor(
        [_DIGIT_BASE**i for i in range(digits.shape[1])], device=rows.device, dtype=torch.float64
    )
    numbers = (digits.nan_to_num() * scale).sum(dim=1).long()
    return torch.where(is_tag, numbers - 1, STRANGE)
