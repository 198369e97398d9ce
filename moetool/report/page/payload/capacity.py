"""Assignments that a limited capacity drops, loads of GPUs, and experts that a batch touches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moetool.analysis.balance.result import Balance
from moetool.analysis.caching.result import Caching
from moetool.analysis.placement.result import MethodPlacement, Placement
from moetool.report.page.payload.values.numbers import shorten, shorten_all
from moetool.trace.metadata import TraceMetadata


def make_capacity(balance: Balance | None) -> dict[str, Any] | None:
    """Return the shares that are dropped at each capacity factor; None if unknown."""
    if balance is None or not balance.capacity:
        return None
    return {
        "batches": balance.batches,
        "shares": [
            {
                "factor": share.factor,
                "policy": share.policy,
                "tokens_per_batch": shorten(share.tokens_per_batch),
                "dropped": shorten(share.dropped_share),
                "random_dropped": shorten(share.baseline.dropped_share),
                "by_position": None
                if share.by_position is None
                else shorten_all(share.by_position),
                "random_by_position": shorten_all(share.baseline.by_position),
            }
            for share in balance.capacity
        ],
    }


def make_placements(placements: Sequence[Placement]) -> list[dict[str, Any]]:
    """Return the scores of each method on each number of GPUs."""
    return [
        {
            "num_gpus": placement.cluster.num_gpus,
            "tokens_per_batch": placement.tokens_per_batch,
            "num_held_out": placement.split.num_held_out,
            "num_fitted": placement.split.num_fitted,
            "unit": placement.split.unit,
            "methods": {
                name: _make_method(found)
                for name, found in placement.methods.items()
                if found is not None
            },
        }
        for placement in placements
    ]


def _make_method(found: MethodPlacement) -> dict[str, Any]:
    return {
        "batch_imbalance": shorten(found.batch_imbalance),
        "fan_out": shorten(found.fan_out),
        "all_to_all_bytes_per_token": shorten(found.all_to_all_bytes_per_token),
        "random_batch_imbalance": shorten(found.baseline.batch_imbalance),
        "random_fan_out": shorten(found.baseline.fan_out),
    }


def make_touched(caching: Caching | None) -> list[dict[str, Any]]:
    """Return the distinct experts per layer that batches of each size and kind touch."""
    if caching is None:
        return []
    return [
        {
            "batch_size": each.batch_size,
            "num_batches": each.num_batches,
            "of": each.of,
            "experts": shorten(each.experts),
            "random": shorten(each.baseline.experts),
        }
        for each in caching.touched
    ]


def make_counts(metadata: TraceMetadata | None) -> dict[str, Any] | None:
    """Return parameters and FLOPs of the model; None if the trace does not state them."""
    if metadata is None or metadata.total_parameters is None:
        return None
    return metadata.model_counts.to_dict()
