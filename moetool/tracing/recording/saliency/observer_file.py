"""Sums of experts' outputs as the file of REAP's observer."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.tracing.recording.saliency.sums import SaliencySums


def make_observer_data(
    sums: Mapping[MoeLayer, SaliencySums],
) -> dict[int, dict[str, torch.Tensor]]:
    """Return what REAP's observer reports: its pruning metrics by layer number.

    `pairwise_expert_frequency` is what REAP has under that name, the sum of two experts'
    frequencies, not how often both were chosen.
    """
    return {layer.layer: _describe(each) for layer, each in sums.items()}


def pack_observer_data(sums: Mapping[MoeLayer, SaliencySums]) -> bytes:
    """Return the bytes of the `.pt` file."""
    buffer = io.BytesIO()
    torch.save(make_observer_data(sums), buffer)
    return buffer.getvalue()


def _describe(sums: SaliencySums) -> dict[str, torch.Tensor]:
    frequency = torch.from_numpy(sums.frequency.copy())
    return {
        "total_tokens": torch.tensor(sums.num_tokens, dtype=torch.long),
        "expert_frequency": frequency,
        "pairwise_expert_frequency": frequency[None] + frequency[:, None],
        "ean_sum": torch.from_numpy(sums.norms.copy()),
        "weighted_ean_sum": torch.from_numpy(sums.weighted_norms.copy()),
        "ean_mean": torch.from_numpy(sums.mean_norms).float(),
        "reap": torch.from_numpy(sums.saliency).float(),
        "weighted_expert_frequency_sum": torch.from_numpy(sums.weights.copy()),
        "max_activations": torch.from_numpy(sums.largest.copy()),
    }
