"""The tokens of a forward call: which slots of its batch hold real ones, and at which positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.caches import count_cached
from moetool.errors import UntraceableError
from moetool.tracing.recording.token_masks import (
    check_mask_rows,
    read_token_mask,
    refuse_other_masks,
)
from moetool.tracing.recording.transfer.host_copies import HostCopy, is_asynchronous
from moetool.wording import number_of


@dataclass(frozen=True)
class CallTokens:
    """The slots of a call's batch that hold real tokens.

    Attributes:
        num_slots: Rows times columns of the batch, pads included.
        slots: Flat index of each real token. # (num_tokens,)
        batch_index: # (num_tokens,)
        position: # (num_tokens,)
    """

    num_slots: int
    slots: NDArray[np.int64]
    batch_index: NDArray[np.int32]
    position: NDArray[np.int32]


class CallInputs:
    """The batch of a forward call, of which a GPU may still have to send the mask.

    A mask is 1 at a token and 0 at a pad, as transformers' models read it. In decoding it covers the
    cached tokens before those of this call as well, and positions continue after them.

    Attributes:
        num_slots: Rows times columns of the batch, pads included.
        device: Device of the batch.

    Args:
        inputs: The call's arguments by name; the call is of a model or of an encoder-decoder's stack.

    Raises:
        UntraceableError: The call has no tokens, its mask does not distinguish pads from tokens,
            or the number of tokens before it is unknown.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        batch = _find_batch(inputs)
        self._num_rows, self._num_columns = batch.shape[:2]
        self.device = batch.device
        self.num_slots = self._num_rows * self._num_columns
        self._num_cached = count_cached(inputs)
        self._copy: HostCopy | None = None
        self._mask: torch.Tensor | None = find_input(inputs, "attention_mask")
        if self._mask is None:
            refuse_other_masks(inputs)
            if self._num_cached is None:
                raise UntraceableError(
                    "The number of tokens before a call is unknown: its cache does not state it.",
                    hint="Pass an attention_mask that covers the cached tokens as well.",
                )
            return
        mask = check_mask_rows(self._mask, num_rows=self._num_rows)
        self._check_width(mask.shape[1])
        if is_asynchronous(mask.device):
            self._copy = HostCopy(mask)
        else:
            # At once, because the caller may change the mask after the call.
            _ = self.tokens

    @cached_property
    def tokens(self) -> CallTokens:
        """The real tokens, for which the mask must have arrived.

        Raises:
            UntraceableError: The mask does not consist of ones and zeros.
        """
        real = self._read_mask()  # (num_rows, num_cached + num_columns)
        position = np.cumsum(real, axis=1) - 1
        here = real[:, -self._num_columns :]  # (num_rows, num_columns)
        row, column = np.nonzero(here)
        return CallTokens(
            num_slots=self.num_slots,
            slots=row * self._num_columns + column,
            batch_index=row.astype(np.int32),
            position=position[:, -self._num_columns :][here].astype(np.int32),
        )

    @property
    def _num_seen(self) -> int:
        return (self._num_cached or 0) + self._num_columns

    def _check_width(self, width: int) -> None:
        # Without a count the mask must be longer than the call: an unknown cache is not empty.
        is_long_enough = (
            width > self._num_columns if self._num_cached is None else width >= self._num_seen
        )
        if not is_long_enough:
            cached = "an unknown number" if self._num_cached is None else self._num_cached
            raise UntraceableError(
                f"The attention mask is {width} wide but must cover "
                f"{number_of(self._num_columns, 'token')} after {cached} in the cache.",
                hint="Pass an attention_mask that covers the cached tokens as well.",
            )

    def _read_mask(self) -> NDArray[np.bool_]:
        """Return which columns hold tokens, those in the cache first.

        Returns:
            # (num_rows, num_cached + num_columns)
        """
        if self._mask is None:
            return np.ones((self._num_rows, self._num_seen), dtype=bool)
        mask = self._mask if self._copy is None else self._copy.read()
        real = read_token_mask(mask)
        # Models ignore the columns of a longer mask that are still to come.
        return real if self._num_cached is None else real[:, : self._num_seen]


def _find_batch(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the tokens of a call, or their embeddings.

    Returns:
        # (num_rows, num_columns, …)
    """
    tokens = find_input(inputs, "input_ids")
    if tokens is None:
        tokens = find_input(inputs, "inputs_embeds")
    if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
        raise UntraceableError(
            "The model was called without input_ids or inputs_embeds.",
            hint="Call it as model(input_ids=…, attention_mask=…).",
        )
    num_rows, num_columns = tokens.shape[0], tokens.shape[1]
    if not num_rows * num_columns:
        raise UntraceableError(
            "The model was called with an empty batch: "
            f"{number_of(num_rows, 'row')} of {number_of(num_columns, 'token')}.",
            hint="Leave out batches without tokens.",
        )
    return tokens


def find_input(inputs: Mapping[str, Any], name: str) -> Any:
    """Return the argument of this name, or of `decoder_<name>` as decoders may call it; else None."""
    value = inputs.get(name)
    return inputs.get(f"decoder_{name}") if value is None else value


def name_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a forward call's arguments by name.

    Keywords are kept as they are: a forward may accept some that its signature lacks, such as
    earlier names of its parameters.
    """
    if not args:
        return dict(kwargs)
    forward: Callable[..., Any] = module.forward
    named = inspect.signature(forward).bind_partial(*args).arguments
    return {**named, **kwargs}
