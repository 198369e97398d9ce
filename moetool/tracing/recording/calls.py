"""One recorded forward call: where its tokens are, and the decisions of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.caches import count_cached
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError
from moetool.tracing.recording.token_masks import read_token_mask, refuse_other_masks
from moetool.wording import number_of


@dataclass(frozen=True)
class RecordedLayer:
    """One routed layer's decisions for the real tokens of a call.

    Attributes:
        experts: Ids in the router's order; -1 where none ran. # (num_tokens, top_k)
        weights: As the experts module received them. # (num_tokens, top_k)
        scores: The router's number for every expert, if asked for. # (num_tokens, num_scores)
    """

    layer: MoeLayer
    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    scores: NDArray[np.float32] | None


@dataclass(frozen=True)
class RecordedCall:
    """One forward call of the model, or in an encoder-decoder of one of its stacks.

    Attributes:
        call: Running number, from 0.
        scope: Path of the module that was called; empty for the model itself.
        batch_index: Row of the batch. # (num_tokens,)
        position: Index among the real tokens of the row's sequence. # (num_tokens,)
        layers: In the model's order.
    """

    call: int
    scope: str
    batch_index: NDArray[np.int32]
    position: NDArray[np.int32]
    layers: tuple[RecordedLayer, ...]


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


def locate_tokens(inputs: Mapping[str, Any]) -> CallTokens:
    """Return where the real tokens of a forward call are, according to its attention mask.

    A mask is 1 at a token and 0 at a pad, as transformers' models read it. In decoding it covers the
    cached tokens before those of this call as well, and positions continue after them.

    Args:
        inputs: The call's arguments by name; the call is of a model or of an encoder-decoder's stack.

    Raises:
        UntraceableError: The call has no tokens, its mask does not distinguish pads from tokens,
            or the number of tokens before it is unknown.
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
    real = _find_real(inputs, num_rows=num_rows, num_columns=num_columns)
    position = np.cumsum(real, axis=1) - 1
    here = real[:, -num_columns:]  # (num_rows, num_columns)
    row, column = np.nonzero(here)
    return CallTokens(
        num_slots=num_rows * num_columns,
        slots=row * num_columns + column,
        batch_index=row.astype(np.int32),
        position=position[:, -num_columns:][here].astype(np.int32),
    )


def _find_real(inputs: Mapping[str, Any], *, num_rows: int, num_columns: int) -> NDArray[np.bool_]:
    """Return which columns hold tokens, those in the cache first.

    Returns:
        # (num_rows, num_cached + num_columns)
    """
    num_cached = count_cached(inputs)
    mask = find_input(inputs, "attention_mask")
    if mask is None:
        refuse_other_masks(inputs)
        if num_cached is None:
            raise UntraceableError(
                "The number of tokens before a call is unknown: its cache does not state it.",
                hint="Pass an attention_mask that covers the cached tokens as well.",
            )
        return np.ones((num_rows, num_cached + num_columns), dtype=bool)
    real = read_token_mask(mask, num_rows=num_rows)
    # Without a count the mask must be longer than the call: an unknown cache is not empty.
    is_long_enough = (
        real.shape[1] > num_columns
        if num_cached is None
        else real.shape[1] >= num_cached + num_columns
    )
    if not is_long_enough:
        cached = "an unknown number" if num_cached is None else num_cached
        raise UntraceableError(
            f"The attention mask is {real.shape[1]} wide but must cover "
            f"{number_of(num_columns, 'token')} "
            f"after {cached} in the cache.",
            hint="Pass an attention_mask that covers the cached tokens as well.",
        )
    # Models ignore the columns of a longer mask that are still to come.
    return real if num_cached is None else real[:, : num_cached + num_columns]


def find_input(inputs: Mapping[str, Any], name: str) -> Any:
    """Return the argument of this name, or of `decoder_<name>` as decoders may call it; else None."""
    value = inputs.get(name)
    return inputs.get(f"decoder_{name}") if value is None else value


def check_decisions(layers: Sequence[MoeLayer], ids: torch.Tensor, weights: torch.Tensor) -> None:
    """Check that ids are in range and distinct, and weights finite and not negative.

    Args:
        layers: Named in errors, in the order of the first dimension.
        ids: -1, any number of times, where none ran. # (num_layers, num_tokens, top_k)
        weights: # (num_layers, num_tokens, top_k)

    Raises:
        UntraceableError: Names the first layer that fails, and why.
    """
    limits = [layer.num_experts + layer.num_identity_experts for layer in layers]
    ordered = ids.sort(dim=2).values
    too_large = ordered[..., -1] >= torch.tensor(limits, device=ids.device)[:, None]
    faults = {
        "an id beyond its experts": ((ordered[..., 0] < -1) | too_large).any(dim=1),
        "one decision that names an expert twice": (
            (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        )
        .flatten(1)
        .any(dim=1),
        "a routing weight that is not finite": ~weights.isfinite().flatten(1).all(dim=1),
        "a negative routing weight": (weights < 0).flatten(1).any(dim=1),
    }
    found = torch.stack(list(faults.values())).cpu()  # (num_faults, num_layers)
    for fault, index in found.nonzero().tolist():
        raise UntraceableError(
            f"{layers[index].experts_path} did not receive a routing decision: it has "
            f"{list(faults)[fault]}.",
            hint="Try another dtype or experts implementation; if the error stays, report the model.",
        )


def name_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a forward call's arguments by name.

    Keywords are kept as they are: a forward may accept some that its signature lacks, such as
    earlier names of its parameters.
    """
    named = inspect.signature(module.forward).bind_partial(*args).arguments
    return {**named, **kwargs}
