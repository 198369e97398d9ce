"""Token masks: where a batch holds tokens, according to the mask that a model was called with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from moetool.errors import UntraceableError
from moetool.tracing.recording.transfer.host_copies import to_numpy

# Masks of something other than the tokens of the call.
_OTHER_MASKS = re.compile(r"encoder|cross|pixel|image|video|visual|vision|audio|feature|head|label")
_KNOWN = ("attention_mask", "decoder_attention_mask")
_HINT = "Pass the two-dimensional mask of ones and zeros that the tokenizer returns."


def is_token_mask(mask: object) -> TypeGuard[torch.Tensor]:
    """Return whether a mask has one number per row and column of tokens."""
    return isinstance(mask, torch.Tensor) and mask.dim() == 2


def check_mask_rows(mask: object, *, num_rows: int) -> torch.Tensor:
    """Return a mask that has one number per row and column of tokens.

    Raises:
        UntraceableError: It has another shape.
    """
    if not is_token_mask(mask) or mask.shape[0] != num_rows:
        kind = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UntraceableError(
            f"Can't tell pads from tokens: the attention mask is {kind}.", hint=_HINT
        )
    return mask


def read_token_mask(mask: torch.Tensor) -> NDArray[np.bool_]:
    """Return where a mask marks tokens.

    Returns:
        # (num_rows, num_mask_columns)

    Raises:
        UntraceableError: It does not consist of ones and zeros.
    """
    values = to_numpy(mask.detach().cpu())
    real: NDArray[np.bool_] = values == 1
    is_other = ~real & (values != 0)
    if is_other.any():
        # For example an additive mask, which has 0 where others have 1.
        raise UntraceableError(
            f"Can't tell pads from tokens: the attention mask holds {float(values[is_other][0]):g}.",
            hint=_HINT,
        )
    return real


def refuse_other_masks(inputs: Mapping[str, Any]) -> None:
    """Refuse a call that has no attention mask but another one, which may mark pads.

    Raises:
        UntraceableError: There is another one.
    """
    for name, value in inputs.items():
        is_mask = isinstance(value, Mapping) or (
            isinstance(value, torch.Tensor) and value.dim() >= 2
        )
        if name not in _KNOWN and "mask" in name and is_mask and not _OTHER_MASKS.search(name):
            raise UntraceableError(
                f"Can't tell pads from tokens: the model was called with {name} and without "
                "attention_mask.",
                hint="Call it as model(input_ids=…, attention_mask=…).",
            )
