"""Prompts shared among processes: windows and a GPU for each."""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch

from moetool.errors import UsageError
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.partial import JOIN_TIMEOUT_S
from moetool.trace.writing.unfinished.finished import FinishedWindow
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.processes.processes import Processes
from moetool.tracing.running.window_run import WindowPrompts
from moetool.wording import number_of

_PAUSE_S = 0.5
_COUNTED = ("prompt_id", "domain", "stack", "layer", "expert")

Item = TypeVar("Item")


def take_share(
    processes: Processes, windows: Sequence[WindowPrompts], finished: Collection[int]
) -> list[WindowPrompts]:
    """Return the windows that this process runs: all of them, finished or not, if it is alone.

    Args:
        processes: All of them have to call this.
        windows: Of the run.
        finished: Those that an earlier run has finished, as the first process knows them.
    """
    if not processes.are_several:
        return list(windows)
    done = processes.broadcast(set(finished))
    left = [window for window in windows if window.index not in done]
    sizes = [sum(len(prompt.token_ids) for prompt in window.prompts) for window in left]
    return share_windows(left, sizes, number=processes.number)[processes.rank]


def add_counts_of_others(
    processes: Processes, counter: DomainCounter, *, earlier: Mapping[int, FinishedWindow]
) -> None:
    """Wait until all have run their windows, and add on the first process what they counted.

    Args:
        processes: All of them have to call this.
        counter: What this process counted.
        earlier: Windows that an earlier run has finished; they are counted as well.
    """
    for other in processes.gather(counter)[1:]:
        counter.add_counter(other)
    for window in earlier.values() if processes.is_first else ():
        for table in window.iter_tables(_COUNTED):
            counter.add(table)


def find_all_windows(sink: TraceSink, *, number: int) -> dict[int, FinishedWindow]:
    """Return the windows of a run that all processes have finished.

    Network file systems show what other hosts have written after up to a minute.

    Raises:
        UsageError: A part is gone.
    """
    began = time.monotonic()
    while len(finished := sink.list_finished()) < number:
        if time.monotonic() - began > JOIN_TIMEOUT_S:
            break
        time.sleep(_PAUSE_S)
    return finished


def share_windows(
    windows: Sequence[Item], sizes: Sequence[int], *, number: int
) -> list[list[Item]]:
    """Return each process's windows: neighbours, so that the largest share is as small as can be.

    Args:
        windows: Those that are still to be traced, in order.
        sizes: Tokens of each.
        number: Number of processes. Those that come last may get none.
    """
    # The smallest limit under which the windows, taken in order, fill no more shares than that.
    low, high = max(sizes, default=0), sum(sizes)
    while low < high:
        limit = (low + high) // 2
        if len(_fill(windows, sizes, limit=limit)) <= number:
            high = limit
        else:
            low = limit + 1
    shares = _fill(windows, sizes, limit=low)
    return [*shares, *([] for _ in range(number - len(shares)))]


def _fill(windows: Sequence[Item], sizes: Sequence[int], *, limit: int) -> list[list[Item]]:
    """Return windows in as few shares as their order allows, each of at most `limit` tokens."""
    shares: list[list[Item]] = []
    filled = limit
    for window, size in zip(windows, sizes, strict=True):
        if filled + size > limit or not shares:
            shares.append([])
            filled = 0
        shares[-1].append(window)
        filled += size
    return shares


def choose_own_device(processes: Processes, name: str | None) -> torch.device:
    """Return the device of one of several processes: its own GPU, or the CPU where there is none.

    Args:
        processes: All of them have to call this.
        name: `cpu` for the CPU even where there are GPUs.

    Raises:
        UsageError: A host has fewer GPUs than processes.
        LostProcessError: Another process has failed.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu":
        accelerator = None
    own = None if accelerator is None else _find_gpu(accelerator, processes.local_rank)
    shared = processes.broadcast(_find_shared(processes.gather(own)))
    if shared is not None:
        host, num_gpus, num_processes = shared
        raise UsageError(
            f"{num_processes} processes were started on {host}, which has "
            f"{number_of(num_gpus, 'GPU')} for them.",
            hint="Start one process for each GPU, or put all on the CPU with --device cpu.",
        )
    if own is None or accelerator is None:
        return torch.device("cpu")
    index = processes.local_rank % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return torch.device(accelerator.type, index)


def _find_gpu(accelerator: torch.device, local_rank: int) -> tuple[str, int, str]:
    """Return the host, the number of GPUs that this process sees there, and what names its own.

    A launcher may show each process one GPU only.
    """
    num_gpus = torch.accelerator.device_count()
    index = local_rank % num_gpus
    module: Any = torch.get_device_module(accelerator)
    properties = module.get_device_properties(index)
    return platform.node(), num_gpus, str(getattr(properties, "uuid", index))


def _find_shared(gpus: Sequence[tuple[str, int, str] | None]) -> tuple[str, int, int] | None:
    """Return a host on which processes would share a GPU, with its GPUs and processes."""
    owned = [gpu for gpu in gpus if gpu is not None]
    for host, _, uuid in owned:
        here = [gpu for gpu in owned if gpu[0] == host]
        if sum(gpu[2] == uuid for gpu in here) > 1:
            return host, len({gpu[2] for gpu in here}), len(here)
    return None
