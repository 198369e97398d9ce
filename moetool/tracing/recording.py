"""What the recorder saw during one forward call of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moetool.anatomy.moe_layers import MoeLayer
from moetool.errors import UntraceableError


@dataclass(frozen=True)
class RecordedLayer:
    """One routed layer's decisions for the real tokens of a call.

    Attributes:
        place: Which layer.
        experts: Ids in the router's order. # (num_tokens, top_k)
        weights: As the experts module received them. # (num_tokens, top_k)
        scores: What the router gave every expert, if asked for. # (num_tokens, num_scores)
    """

    place: MoeLayer
    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    scores: NDArray[np.float32] | None


@dataclass(frozen=True)
class RecordedCall:
    """One forward call of the model.

    Attributes:
        call: Running number, from 0.
        batch_index: Row of the batch. # (num_tokens,)
        position: Index among the real tokens of the row's sequence. # (num_tokens,)
        layers: In the model's order.
    """

    call: int
    batch_index: NDArray[np.int32]
    position: NDArray[np.int32]
    layers: tuple[RecordedLayer, ...]


@dataclass(frozen=True)
class CallTokens:
    """Which slots of a call's batch hold real tokens.

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
    """Return where the real tokens of a forward call are, by its attention mask.

    The mask may cover cached tokens before those of this call, as it does in decoding; positions
    count on from them.

    Args:
        inputs: The call's arguments by name.

    Raises:
        UntraceableError: The call has no token input, or its mask tells no pads.
    """
    tokens = inputs.get("input_ids")
    if tokens is None:
        tokens = inputs.get("inputs_embeds")
    if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
        raise UntraceableError(
            "The model was called without input_ids or inputs_embeds.",
            hint="Call it as model(input_ids=…, attention_mask=…).",
        )
    num_rows, num_columns = tokens.shape[0], tokens.shape[1]
    mask = inputs.get("attention_mask")
    if mask is None:
        cache = inputs.get("past_key_values")
        num_cached = int(cache.get_seq_length()) if cache is not None else 0
        real = np.ones((num_rows, num_cached + num_columns), dtype=bool)
    elif isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] >= num_columns:
        real = mask.detach().cpu().numpy() != 0
    else:
        kind = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise UntraceableError(
            f"Can't tell pads from tokens: the attention mask is {kind}.",
            hint="Pass the two-dimensional mask of ones and zeros that the tokenizer returns.",
        )
    position = np.cumsum(real, axis=1) - 1
    here = real[:, -num_columns:]  # (num_rows, num_columns)
    row, column = np.nonzero(here)
    return CallTokens(
        num_slots=num_rows * num_columns,
        slots=row * num_columns + column,
        batch_index=row.astype(np.int32),
        position=position[:, -num_columns:][here].astype(np.int32),
    )


def find_faults(ids: torch.Tensor, weights: torch.Tensor, *, num_ids: int) -> torch.Tensor:
    """Return which of the things that every trace must pass these decisions fail.

    Computed where the tensors are, so that a GPU need not wait.

    Args:
        ids: # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
        num_ids: Ids run from 0 to below this.

    Returns:
        Whether an id is out of range, whether a decision names an expert twice, and whether a
        weight is not finite. # (3,)
    """
    ordered = ids.sort(dim=1).values  # (num_tokens, top_k)
    return torch.stack(
        [
            ((ordered[:, 0] < 0) | (ordered[:, -1] >= num_ids)).any(),
            (ordered[:, 1:] == ordered[:, :-1]).any(),
            ~weights.isfinite().all(),
        ]
    )


def raise_for_faults(place: MoeLayer, faults: torch.Tensor) -> None:
    """Raise for what `find_faults` found.

    Raises:
        UntraceableError: Naming the layer and what is wrong.
    """
    kinds = (
        f"an id beyond the {place.num_experts + place.num_identity_experts} experts",
        "one decision that names an expert twice",
        "a routing weight that is not finite",
    )
    for kind, is_fault in zip(kinds, faults.tolist(), strict=True):
        if is_fault:
            raise UntraceableError(
                f"What {place.experts_path} received is no routing decision: {kind}.",
                hint="Try another dtype or experts implementation; if it stays, report the model.",
            )


def name_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a forward call's arguments by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    inputs = dict(bound.arguments)
    return {**inputs, **inputs.pop("kwargs", {})}
