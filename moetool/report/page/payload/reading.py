"""Prompts to read: texts as JSON, and decisions as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.sampling.result import PromptSample, SampledLayer
from moetool.report.page.payload.names import show_name, show_piece
from moetool.trace.decisions import PHASES

# A weight of 1 in the bytes; larger weights are scaled down to it.
_FULL = 255
# A byte with all ones stands for no expert.
_MOST_IDS_IN_BYTES = 0xFF


def make_sample(sample: PromptSample, *, redacts_text: bool) -> dict[str, Any]:
    """Return the prompts, texts and places of the tokens of a sample.

    Args:
        sample: As it was read.
        redacts_text: Leave texts and token ids out.
    """
    texts: list[str | None] = [] if redacts_text else [show_piece(x) for x in sample.list_pieces()]
    known = sorted({text for text in texts if text is not None})
    index_of = {text: index for index, text in enumerate(known)}
    stacks = sorted(set(sample.stack))
    is_new = np.zeros(0) if sample.phase is None else sample.phase == PHASES.index("decode")
    return {
        "prompts": [
            {
                "id": show_name(prompt.prompt_id),
                "domain": show_name(prompt.domain),
                "num_tokens": prompt.num_tokens,
                "num_left_out": prompt.num_left_out,
            }
            for prompt in sample.prompts
        ],
        "num_tokens": sample.num_tokens,
        "texts": known,
        "text_of": [-1 if text is None else index_of[text] for text in texts] if known else None,
        "stacks": stacks,
        "stack_of": None if len(stacks) < 2 else [stacks.index(stack) for stack in sample.stack],
        "new_tokens": np.flatnonzero(is_new).tolist(),
        "is_complete": sample.is_complete,
        "has_ranks": sample.has_ranks,
        "shapes": [[layer.experts.shape[1], _find_width(layer)] for layer in sample.layers],
        "has_weights": all(layer.weights is not None for layer in sample.layers),
        "weight_scale": [_find_scale(layer.weights) for layer in sample.layers],
    }


def pack_decisions(sample: PromptSample) -> bytes:
    """Return the decisions of each layer, one after the other: experts, then weights.

    Each layer has a place for every token of the sample, times its top-k. Experts are bytes in a
    layer with at most 255 of them, otherwise words of two bytes, the low one first; all ones where
    none ran. Weights are bytes, of which 255 is the layer's `weight_scale`.
    """
    parts = []
    for layer in sample.layers:
        shape = (sample.num_tokens, layer.experts.shape[1])
        experts = np.full(shape, -1, dtype="<i2")
        experts[layer.token] = layer.experts
        # -1 becomes all ones in either width.
        parts.append(experts.astype(f"<u{_find_width(layer)}").tobytes())
        if layer.weights is not None:
            weights = np.zeros(shape, dtype=np.uint8)
            scale = _find_scale(layer.weights) or 1.0
            weights[layer.token] = np.clip(np.rint(layer.weights / scale * _FULL), 0, _FULL)
            parts.append(weights.tobytes())
    return b"".join(parts)


def _find_width(layer: SampledLayer) -> int:
    """Return the bytes of an expert's id."""
    num_ids = layer.layer.num_experts + layer.layer.num_identity_experts
    return 1 if num_ids <= _MOST_IDS_IN_BYTES else 2


def _find_scale(weights: NDArray[np.float32] | None) -> float:
    if weights is None or not weights.size:
        return 1.0
    return max(1.0, float(weights.max()))
