"""Sums of experts' outputs as bytes, to be added to others later without losing a bit."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import fields

import numpy as np

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.saliency.sums import SaliencySums

LayerSums = dict[MoeLayer, SaliencySums]

_NAMES = [each.name for each in fields(SaliencySums)]


def take_sums(sums: Mapping[MoeLayer, SaliencySums]) -> LayerSums:
    """Return the sums of each layer so far, and start again from none."""
    return {layer: each.take() for layer, each in sums.items()}


def add_sums(parts: Iterable[Mapping[MoeLayer, SaliencySums]]) -> LayerSums:
    """Return the sums of each layer over several parts, added in their order."""
    total: LayerSums = {}
    for part in parts:
        for layer, sums in part.items():
            total.setdefault(layer, SaliencySums.empty(layer.num_experts)).add_sums(sums)
    return total


def pack_sums(sums: Mapping[MoeLayer, SaliencySums]) -> bytes:
    """Return the sums of each layer as bytes of an npz file."""
    buffer = io.BytesIO()
    arrays = {
        f"{layer.layer}/{name}": np.asarray(getattr(each, name))
        for layer, each in sums.items()
        for name in _NAMES
    }
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_sums(content: bytes, layers: Iterable[MoeLayer]) -> LayerSums:
    """Return sums that `pack_sums` packed.

    Args:
        content: The bytes.
        layers: Those of the model, each with another number.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {
            layer: SaliencySums(
                num_tokens=int(arrays[f"{layer.layer}/num_tokens"]),
                **{
                    name: arrays[f"{layer.layer}/{name}"] for name in _NAMES if name != "num_tokens"
                },
            )
            for layer in layers
            if f"{layer.layer}/num_tokens" in arrays
        }
