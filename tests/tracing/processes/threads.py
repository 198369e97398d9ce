"""Threads that stand for the processes of a run; each has its own connection to the store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch.distributed import TCPStore

from moetool.tracing.processes.environment import ProcessPlace
from moetool.tracing.processes.processes import Processes

Result = TypeVar("Result")

# Longer than anything here takes, so that a fault in the code ends in an error.
_END_S = 60.0


def list_places(number: int, *, port: int) -> list[ProcessPlace]:
    """Return the places of processes that meet at a port of this machine."""
    return [
        ProcessPlace(
            rank=rank,
            number=number,
            local_rank=rank,
            local_number=number,
            address="127.0.0.1",
            port=port,
        )
        for rank in range(number)
    ]


def run_in_each(
    number: int,
    action: Callable[[Processes], Result],
    *,
    absent: frozenset[int] = frozenset(),
    start_timeout_s: float = _END_S,
    lost_after_s: float = _END_S,
) -> list[Future[Result]]:
    """Run something in each process, and return how it ended there; absent ones are left out."""

    def run(place: ProcessPlace) -> Result:
        processes = Processes(place, start_timeout_s=start_timeout_s, lost_after_s=lost_after_s)
        try:
            return action(processes)
        finally:
            processes.close()

    # The first process opens this store once more: a port that was only free a moment ago may be
    # taken again.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    places = list_places(number, port=store.port)
    if 0 in absent:
        # Nobody listens there.
        del store
    with ThreadPoolExecutor(number) as pool:
        return [pool.submit(run, place) for place in places if place.rank not in absent]
