"""Numbers that modules and configurations keep under one of several names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "n_positions")


def read_count(holder: object, *names: str) -> int | None:
    """Return the first positive whole number that an object keeps under one of some names.

    None if it keeps none: what is absent, zero, true or no number is passed over.
    """
    for name in names:
        number = getattr(holder, name, None)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None


def find_context(config: PreTrainedConfig) -> int | None:
    """Return how many positions a configuration says its model can take; None if it doesn't."""
    return read_count(config.get_text_config(), *_CONTEXT_NAMES)
