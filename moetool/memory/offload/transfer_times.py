"""The least time that moving experts to the GPU takes, by the measured speed of the bus."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.answers.on_gpus import Offload
from moetool.memory.measured.measurement import BusBandwidth

_NOT_MEASURED = (
    "How long the bus takes for a token is unknown: its speed is only known where --measure ran."
)


def add_transfer_times(offload: Offload, bus: BusBandwidth | None) -> Offload:
    """Return an answer with the time that the bus takes for the experts of one token.

    It is the bytes that cross the bus over its bandwidth: a lower bound on the time of a token,
    because accelerate moves a layer's experts before it runs them, and does nothing meanwhile.

    Args:
        bus: The speed of this machine's bus; None if it wasn't measured.
    """
    if not offload.num_offloaded_layers:
        return offload
    kept = tuple(note for note in offload.notes if note != _NOT_MEASURED)
    if bus is None:
        return replace(offload, notes=(*kept, _NOT_MEASURED))
    return replace(
        offload,
        notes=kept,
        transfer_s_per_token=offload.transfer_bytes_per_token / bus.pageable_bytes_per_s,
        pinned_transfer_s_per_token=offload.transfer_bytes_per_token / bus.pinned_bytes_per_s,
    )
