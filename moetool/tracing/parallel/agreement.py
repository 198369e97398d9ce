"""A check that all processes that share a model record, and so carry out, the same decisions."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from moetool.errors import UntraceableError
from moetool.tracing.processes.processes import Processes

# These import torch, and the first checks of a run go without.
if TYPE_CHECKING:
    from moetool.tracing.recording.calls import RecordedCall
    from moetool.tracing.recording.transfer.inbox import Receipt

Value = TypeVar("Value")


class Agreement:
    """Compares what the processes have recorded, by checksums of ids, weights and tokens.

    Every process routes every token, and carries out the choices of the experts that it holds. If
    two of them routed a token differently, a choice would be carried out twice, or not at all.

    Checksums are made and compared in a thread while the model goes on. A context manager, which
    ends the thread.

    Args:
        processes: This one and the others. All of them add the same calls and compare as often.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="moetool-agreement")
        self._sums: list[Future[list[int]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error too: the others wait for this process to answer. Those that fail say so.
        self._thread.shutdown(wait=True)

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which writes the trace."""
        return self._processes.is_first

    def broadcast(self, value: Value) -> Value:
        """Return the value that the first process gives; before anything is compared.

        Raises:
            LostProcessError: A process has failed or died.
        """
        return self._processes.broadcast(value)

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Take calls that this process has recorded, and that may still be on their way."""
        self._sums.append(self._thread.submit(_sum_up, receipts))

    def compare(self) -> Future[None]:
        """Compare the calls added since the last time with those of the other processes.

        Returns:
            The result of the comparison, which raises UntraceableError if they differ, in all
            processes, and LostProcessError if one has failed or died.
        """
        sums, self._sums = self._sums, []
        return self._thread.submit(self._compare, sums)

    def _compare(self, added: Sequence[Future[list[int]]]) -> None:
        own = [each for sums in added for each in sums.result()]
        gathered = self._processes.gather(own)
        other = next((rank for rank, sums in enumerate(gathered) if sums != own), None)
        rank = self._processes.broadcast(other)
        if rank is not None:
            raise UntraceableError(
                f"Process 0 and process {rank} of {self._processes.number}, which share the model, "
                "have routed tokens differently.",
                hint="Use GPUs of one kind, or --device-map auto without torchrun.",
            )


def _sum_up(receipts: Sequence[Receipt]) -> list[int]:
    """Return a checksum of each call's tokens and decisions."""
    return [_sum_up_call(call) for receipt in receipts for call in receipt.result()]


def _sum_up_call(call: RecordedCall) -> int:
    arrays: list[NDArray[np.generic]] = [call.batch_index, call.position]
    arrays += [array for layer in call.layers for array in (layer.experts, layer.weights)]
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return total
