"""Recorded forward calls, in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer


class TokenAxis(StrEnum):
    """The axes along which positions of tokens are counted.

    Attributes:
        INPUT: Rows and columns of the token ids, or embeddings, that the model was called with.
        BLOCK: The axes of the hidden states that the layer's own block received.
    """

    INPUT = "input"
    BLOCK = "block"


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

    Layers that count other tokens than the rest of the call, or run again in it, have another record
    with the same number.

    Attributes:
        call: Running number, from 0.
        scope: Path of the module that was called; empty for the model itself.
        batch_index: Row of the batch. # (num_tokens,)
        position: Index among the real tokens of the row's sequence. # (num_tokens,)
        layers: In the model's order.
        run: How often these layers had run in the call before.
        token_axis: The axes that `batch_index` and `position` belong to.
    """

    call: int
    scope: str
    batch_index: NDArray[np.int32]
    position: NDArray[np.int32]
    layers: tuple[RecordedLayer, ...]
    run: int = 0
    token_axis: TokenAxis = TokenAxis.INPUT
