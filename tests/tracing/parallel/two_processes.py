"""Two processes of one run, forked so that neither has to load torch again."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed import TCPStore

Result = TypeVar("Result")

NUM_PROCESSES = 2
# Longer than anything here takes on a busy machine.
_END_S = 300.0


def run_in_both(action: Callable[[int], Result], folder: Path) -> list[Result]:
    """Run something in two processes that torch connects, and return what each returned.

    Args:
        action: Takes the process's rank. What it returns can be pickled.
        folder: Takes their results, and the file through which they meet.
    """
    context = multiprocessing.get_context("fork")
    # A launcher holds the store. A port that was only free a moment ago may be taken again.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [
        context.Process(target=_run, args=(rank, action, folder, store.port), daemon=True)
        for rank in range(NUM_PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        # It ends by itself before, unless it never began.
        child.join(2 * _END_S)
        child.kill()
        child.join()
    ended = [_read(rank, folder, child.exitcode) for rank, child in enumerate(children)]
    failures = [failure for _, failure in ended if failure is not None]
    assert not failures, "\n".join(failures)
    return [result for result, _ in ended]


def _read(rank: int, folder: Path, exit_code: int | None) -> tuple[Any, str | None]:
    """Return the result of a process, or why it has none."""
    found = folder / f"{rank}.pickle"
    if found.exists():
        result, failure = pickle.loads(found.read_bytes())
        return result, failure and f"process {rank} failed:\n{failure}"
    file = folder / f"{rank}.stacks"
    stacks = file.read_text() if file.exists() else "it never began"
    return None, f"process {rank} ended with exit code {exit_code} and without a result:\n{stacks}"


def _run(rank: int, action: Callable[[int], Result], folder: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(NUM_PROCESSES),
        "LOCAL_WORLD_SIZE": str(NUM_PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    stacks = (folder / f"{rank}.stacks").open("w")
    # Processes that wait for each other end, and show where each of their threads waits.
    faulthandler.dump_traceback_later(_END_S, exit=True, file=stacks)
    faulthandler.enable(file=stacks)
    result, failure = None, None
    with warnings.catch_warnings():
        # torch's own, on random numbers in shared tensors.
        warnings.simplefilter("ignore", UserWarning)
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_PROCESSES
            )
            result = action(rank)
        except BaseException:  # noqa: BLE001 - the test shows it
            failure = traceback.format_exc()
    (folder / f"{rank}.tmp").write_bytes(pickle.dumps((result, failure)))
    (folder / f"{rank}.tmp").rename(folder / f"{rank}.pickle")
    # Nothing of the tests' own process is to be cleaned up here.
    os._exit(0)
