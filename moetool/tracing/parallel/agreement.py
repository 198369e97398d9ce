"""A check that all processes that share a model record, and so carry out, the same decisions."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UntraceableError
from moetool.tracing.processes.processes import Processes

if TYPE_CHECKING:
    from moetool.tracing.recording.calls import RecordedCall

Value = TypeVar("Value")


class Agreement:
    """Compares what the processes have recorded, by checksums of ids, weights and tokens.

    Every process routes every token, and carries out the choices of the experts that it holds. If two of them
    routed a token differently, a choice would be carried out twice, or not at all.

    Args:
        processes: This process and the others.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._lock = Lock()
        # Calls may be added in any order.
        self._sums: dict[int, int] = {}

    @property
    def is_first(self) -> bool:
        """Whether this process writes for all."""
        return self._processes.is_first

    def share(self, value: Value) -> Value:
        """Return the first process's value, in all of them."""
        shared: Value = self._processes.broadcast(value)
        return shared

    def add(self, calls: Iterable[RecordedCall]) -> None:
        """Take calls that this process has recorded, from any thread."""
        sums = {call.call: _sum_up(call) for call in calls}
        with self._lock:
            self._sums.update(sums)

    def check(self) -> None:
        """Compare the calls added since the last time with those of the other processes.

        All processes have to have added the same calls.

        Raises:
            UntraceableError: They differ. All processes raise it.
            LostProcessError: A process has failed or died.
        """
        with self._lock:
            own, self._sums = tuple(sorted(self._sums.items())), {}
        gathered = self._processes.gather(own)
        other = next((rank for rank, sums in enumerate(gathered) if sums != own), None)
        rank = self._processes.broadcast(other)
        if rank is not None:
            raise UntraceableError(
                f"Process 0 and process {rank} of {self._processes.number}, which share the model, have "
                "routed tokens differently.",
                hint="Use GPUs of one kind, or --device-map auto without torchrun.",
            )


def _sum_up(call: RecordedCall) -> int:
    """Return a checksum of a call's tokens and decisions."""
    arrays: list[NDArray[np.generic]] = [call.batch_index, call.position]
    arrays += [array for layer in call.layers for array in (layer.experts, layer.weights)]
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array), total)
    return total
