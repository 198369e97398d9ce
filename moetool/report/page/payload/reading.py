"""Prompts to read: texts as JSON, and decisions as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.sampling.result import PromptSample, SampledLayer
from moetool.report.page.payload.alignment import align
from moetool.report.page.payload.values.names import show_name, show_pieces
from moetool.report.page.payload.values.numbers import shorten
from moetool.trace.decisions import PHASES
from moetool.trace.facts import LayerFacts

# The largest weight of a layer in the bytes.
_FULL = 255
# A byte with all ones stands for no expert.
_MOST_IDS_IN_BYTES = 0xFF


def make_sample(
    sample: PromptSample, layers: Sequence[LayerFacts], *, redacts_text: bool
) -> dict[str, Any]:
    """Return the prompts, texts and places of the tokens of a sample.

    Args:
        sample: As it was read.
        layers: Of the page.
        redacts_text: Leave texts and token ids out.
    """
    texts: list[str | None] = [] if redacts_text else show_pieces(sample.list_pieces())
    known = sorted({text for text in texts if text is not None})
    index_of = {text: index for index, text in enumerate(known)}
    stacks = sorted(set(sample.stack))
    is_new = np.zeros(0) if sample.phase is None else sample.phase == PHASES.index("decode")
    return {
        "prompts": [
            {
                # An id may be a text.
                "id": str(number) if redacts_text else show_name(prompt.prompt_id),
                "domain": show_name(prompt.domain),
                "num_tokens": prompt.num_tokens,
                "num_left_out": prompt.num_left_out,
            }
            for number, prompt in enumerate(sample.prompts, start=1)
        ],
        "num_tokens": sample.num_tokens,
        "texts": known,
        "text_of": [-1 if text is None else index_of[text] for text in texts] if known else None,
        "stacks": stacks,
        "stack_of": None if len(stacks) < 2 else [stacks.index(stack) for stack in sample.stack],
        "new_tokens": np.flatnonzero(is_new).tolist(),
        "is_complete": sample.is_complete,
        "has_ranks": sample.has_ranks,
        "shapes": [
            [layer.experts.shape[1], _find_width(layer)] if layer else [0, 1]
            for layer in _align(sample, layers)
        ],
        "has_weights": all(layer.weights is not None for layer in sample.layers),
        "weight_scale": [
            shorten(_find_scale(layer.weights)) if layer else 1.0
            for layer in _align(sample, layers)
        ],
        "layer_stacks": [stacks.index(layer.stack) for layer in layers],
    }


def pack_decisions(sample: PromptSample, layers: Sequence[LayerFacts]) -> bytes:
    """Return the decisions of each layer, one after the other: experts, then weights.

    Each layer has a place for every token of the sample, times its top-k. Experts are bytes in a
    layer with at most 255 of them, otherwise words of two bytes, the low one first; all ones where
    none ran. Weights are bytes, of which 255 is the layer's `weight_scale`.
    """
    parts = []
    for layer in _align(sample, layers):
        if layer is None:
            continue
        shape = (sample.num_tokens, layer.experts.shape[1])
        experts = np.full(shape, -1, dtype="<i2")
        experts[layer.token] = layer.experts
        # -1 becomes all ones in either width.
        parts.append(experts.astype(f"<u{_find_width(layer)}").tobytes())
        if layer.weights is not None:
            weights = np.zeros(shape, dtype=np.uint8)
            scale = _find_scale(layer.weights)
            weights[layer.token] = np.clip(np.rint(layer.weights / scale * _FULL), 0, _FULL)
            parts.append(weights.tobytes())
    return b"".join(parts)


def _align(sample: PromptSample, layers: Sequence[LayerFacts]) -> list[SampledLayer | None]:
    """Return the sample's decisions in each of the page's layers."""
    return align(layers, (((each.layer.stack, each.layer.layer), each) for each in sample.layers))


def _find_width(layer: SampledLayer) -> int:
    """Return the bytes of an expert's id."""
    num_ids = layer.layer.num_experts + layer.layer.num_identity_experts
    return 1 if num_ids <= _MOST_IDS_IN_BYTES else 2


def _find_scale(weights: NDArray[np.float32] | None) -> float:
    """Return the weight that all bits of a byte stand for: the largest."""
    largest = 0.0 if weights is None or not weights.size else float(weights.max())
    return largest if largest > 0 else 1.0
