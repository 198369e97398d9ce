"""Placements as files of torch tensors: as DeepSeek's EPLB returns them, and for KTransformers."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moetool.interchange.exports.slots import SlotPlan

_LARGEST = np.iinfo(np.int32).max


def render_eplb(plan: SlotPlan) -> bytes:
    """Return `phy2log`, `log2phy` and `logcnt` of the routed layers, in their order.

    `log2phy` lists the slots of each expert in ascending order, then -1 up to the most replicas.
    """
    phy2log = np.array(plan.slots, dtype=np.int64)  # (num_layers, num_slots)
    logcnt = np.stack([np.bincount(row, minlength=plan.num_experts) for row in phy2log])
    log2phy = np.full((*logcnt.shape, int(logcnt.max())), -1, dtype=np.int64)
    for layer, row in enumerate(phy2log):
        for expert in range(plan.num_experts):
            (slots,) = np.nonzero(row == expert)
            log2phy[layer, expert, : len(slots)] = slots
    return _save({"phy2log": phy2log, "log2phy": log2phy, "logcnt": logcnt.astype(np.int64)})


def explain_eplb(_: SlotPlan, name: str) -> str:
    """Return the call that reads the file."""
    return f"torch.load({name!r}, weights_only=True), with the keys phy2log, log2phy and logcnt"


def render_ktransformers(plan: SlotPlan) -> bytes:
    """Return the counts of every hidden layer, from which KTransformers picks the experts for GPUs.

    SGLang takes the same file and runs its own EPLB on it. Counts beyond 32 bits are all divided by
    the same power of two.

    Raises:
        UsageError: The number of hidden layers is unknown, or too small for the trace.
    """
    num_layers = plan.require_hidden_layers(engine="KTransformers")
    counts = np.zeros((1, num_layers, plan.num_experts), dtype=np.int64)
    counts[0, list(plan.layers)] = plan.load
    while counts.max() > _LARGEST:
        counts //= 2
    return _save({"logical_count": counts.astype(np.int32)})


def explain_ktransformers(_: SlotPlan, name: str) -> str:
    """Return the options of `sglang.launch_server` that use the file."""
    return (
        "--kt-expert-placement-strategy frequency --kt-num-gpu-experts N "
        f"--init-expert-location {shlex.quote(name)}"
    )


def _save(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    import torch

    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, content)
    return content.getvalue()
