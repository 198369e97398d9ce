"""The tokens of a forward call: which slots of its batch hold real ones, and at which positions."""

from __future__ import annotations

import inspect
import re
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

# Whole numbers about tokens, which are not their ids.
_NO_IDS = re.compile(r"mask|position|cache|type|length|index|indices|task")
_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
        inputs: The call's arguments by name, with a batch that `find_batch` finds; the call is of a
            model or of an encoder-decoder's stack.

    Raises:
        UntraceableError: The batch is empty, its mask does not distinguish pads from tokens, or the
            number of tokens before it is unknown.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        batch = find_batch(inputs)
        assert batch is not None
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


def find_batch(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the token ids of a call, or their embeddings; None if it has neither.

    Ids may have any name if the call has whole numbers of one shape alone, such as ids and labels.

    Returns:
        # (num_rows, num_columns, …)

    Raises:
        UntraceableError: The batch is empty.
    """
    tokens = find_input(inputs, "input_ids")
    if tokens is None:
        tokens = find_input(inputs, "inputs_embeds")
    if tokens is None:
        ids = [value for name, value in inputs.items() if _may_be_ids(name, value)]
        tokens = ids[0] if len({value.shape for value in ids}) == 1 else None
    if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
        return None
    num_rows, num_columns = tokens.shape[0], tokens.shape[1]
    if not num_rows * num_columns:
        raise UntraceableError(
            "The model was called with an empty batch: "
            f"{number_of(num_rows, 'row')} of {number_of(num_columns, 'token')}.",
            hint="Leave out batches without tokens.",
        )
    return tokens


def _may_be_ids(name: str, value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.dim() == 2
        and value.dtype in (torch.int32, torch.int64)
        and not _NO_IDS.search(name)
    )


def find_input(inputs: Mapping[str, Any], name: str) -> Any:
    """Return the argument of this name, or of `decoder_<name>` as decoders may call it; else None."""
    value = inputs.get(name)
    return inputs.get(f"decoder_{name}") if value is None else value


def name_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a forward call's arguments by name.

    Keywords are kept as they are: a forward may accept some that its signature lacks, such as
    earlier names of its parameters. A batch that is passed as one mapping is named by its keys, and
    the arguments of a wrapper such as `DataParallel` by the module that it passes them on to.
    """
    named: dict[str, Any] = {}
    if args:
        named = _name_arguments(_find_named_forward(module), args)
    for value in list(named.values()):
        if isinstance(value, Mapping):
            named.update({str(name): item for name, item in value.items()})
    return {**named, **kwargs}


def _name_arguments(forward: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    signature = inspect.signature(forward)
    for name, value in signature.bind_partial(*args).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            named.update({f"{name}.{index}": item for index, item in enumerate(value)})
        else:
            named[name] = value
    return named


def _find_named_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward that names the arguments, which a wrapper passes on as they are."""
    forward: Callable[..., Any] = module.forward
    parameters = inspect.signature(forward).parameters.values()
    children = list(module.children())
    passes_on = all(parameter.kind in _UNNAMED for parameter in parameters)
    return _find_named_forward(children[0]) if passes_on and len(children) == 1 else forward
