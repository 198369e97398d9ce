"""The thread in which recorded calls arrive in host memory."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.transfer.sent import SentShipment

# Calls of a shipment, once they have arrived.
Receipt = Future[list[RecordedCall]]

# Shipments that may be on their way at once. A model that is ahead of them waits, so that memory for
# recording does not grow.
_MOST_ON_THEIR_WAY = 3


def make_receipt(calls: list[RecordedCall]) -> Receipt:
    """Return the receipt of calls that have arrived."""
    receipt = Receipt()
    receipt.set_result(calls)
    return receipt


class Inbox:
    """Receives shipments: those of a GPU in a separate thread, in their order, others at once."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._on_their_way: deque[Receipt] = deque()

    def receive(self, sent: SentShipment, *, is_asynchronous: bool) -> Receipt:
        """Return the receipt of a shipment.

        Args:
            sent: The shipment.
            is_asynchronous: Whether its device goes on meanwhile.

        Raises:
            UntraceableError: A call can't be recorded exactly, if that is known already.
        """
        if not is_asynchronous:
            return make_receipt(sent.receive())
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="moetool-recorder")
        receipt = self._thread.submit(sent.receive)
        self._on_their_way.append(receipt)
        return receipt

    def wait_for_room(self) -> None:
        """Wait until another shipment may be sent.

        Raises:
            UntraceableError: An earlier call can't be recorded exactly.
        """
        while self._on_their_way and (
            len(self._on_their_way) >= _MOST_ON_THEIR_WAY or self._on_their_way[0].done()
        ):
            self._on_their_way.popleft().result()

    def close(self, *, raises: bool) -> None:
        """Wait for all shipments, and end the thread.

        Args:
            raises: Raise the error of a call that can't be recorded exactly.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        while self._on_their_way:
            receipt = self._on_their_way.popleft()
            if raises:
                receipt.result()
