"""The part of a process that shares a model with the first, and leaves rows to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.running.batches import Batch, WindowPrompts

# By the index of a window that is left to run, the batches of it that need not run again.
LeftBatches = Mapping[int, frozenset[int]]


def follow(
    windows: Sequence[WindowPrompts],
    left: LeftBatches,
    agreement: Agreement,
    *,
    list_batches: Callable[[WindowPrompts], Iterable[Batch]],
    run_batch: Callable[[WindowPrompts, int, Batch], object],
) -> None:
    """Run the batches that the first process runs, in its order.

    Args:
        windows: All of the run.
        left: Those that the first process runs.
        agreement: Compares what is recorded, window by window.
        list_batches: Returns the batches of a window.
        run_batch: Puts one through the model, given its window and its index there.

    Raises:
        UntraceableError: The processes have recorded different decisions.
        LostProcessError: Another process has failed or died.
    """
    compared: list[Future[None]] = []
    for window in windows:
        if window.index not in left:
            continue
        for index, batch in enumerate(list_batches(window)):
            if index not in left[window.index]:
                run_batch(window, index, batch)
        compared.append(agreement.compare())
        # One behind: the model goes on while the last window is compared.
        for each in compared[:-1]:
            each.result()
        del compared[:-1]
    for each in compared:
        each.result()
