"""Windows shared among processes, and what each of them found, put together by the first."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moetool.trace.writing.partial import JOIN_TIMEOUT_S
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.assembly.row_threads import RunTotals
from moetool.tracing.processes.processes import Processes
from moetool.tracing.running.batches import WindowPrompts
from moetool.tracing.running.texts import TextFile

_PAUSE_S = 0.5

Item = TypeVar("Item")


@dataclass(frozen=True)
class ShareResult:
    """The sums and facts that one process found in its share.

    Attributes:
        totals: Sums over its windows.
        score_function: Name of the function from scores to probabilities, if it was looked for.
        device: Where its model was.
    """

    totals: RunTotals
    score_function: str | None
    device: str | None


def take_share(
    processes: Processes, windows: Sequence[WindowPrompts], finished: Collection[int]
) -> list[WindowPrompts]:
    """Return the windows that this process sees to, in order.

    Windows that an earlier run has finished go to the first process, which only counts them.

    Args:
        processes: All of them have to call this.
        windows: Of the run.
        finished: Index of each that an earlier run has finished, as the first process knows it.
    """
    done = processes.broadcast(set(finished))
    left = [window for window in windows if window.index not in done]
    sizes = [sum(len(prompt.token_ids) for prompt in window.prompts) for window in left]
    shares = share_windows(left, sizes, number=processes.number)
    mine = {window.index for window in shares[processes.rank]}
    if processes.is_first:
        mine |= done
    return [window for window in windows if window.index in mine]


def join_results(
    processes: Processes, result: ShareResult, *, prompt_ids: Sequence[str]
) -> ShareResult:
    """Wait until all processes have run their shares, and put the results together on the first.

    Args:
        processes: All of them have to call this.
        result: Of this process. That of the first becomes that of all.
        prompt_ids: In the order of the run.
    """
    others = processes.gather(result)[1:]
    totals = result.totals
    for other in others:
        totals.add_totals(other.totals)
    place = {prompt_id: index for index, prompt_id in enumerate(prompt_ids)}
    totals.excerpts.sort(key=lambda excerpt: place[excerpt.prompt_id])
    functions = (each.score_function for each in (result, *others))
    devices = dict.fromkeys(each.device for each in (result, *others) if each.device)
    return ShareResult(
        totals,
        score_function=next(filter(None, functions), None),
        device=", ".join(devices) or None,
    )


def write_texts(sink: TraceSink, texts: TextFile) -> None:
    """Write the texts of all windows, which processes have left with their rows.

    Raises:
        UsageError: They can't be written, or a part is gone.
    """
    for window in sink.list_finished().values():
        texts.write_lines(window.read_texts())


def wait_for_windows(sink: TraceSink, *, number: int) -> None:
    """Wait until all windows of a run are to be seen here.

    Network file systems show what other hosts have written after up to a minute.
    """
    began = time.monotonic()
    while len(sink.list_finished()) < number and time.monotonic() - began < JOIN_TIMEOUT_S:
        time.sleep(_PAUSE_S)


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
