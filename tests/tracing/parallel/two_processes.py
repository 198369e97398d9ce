"""Two processes of one run, forked so that neither has to load torch again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed import TCPStore

Result = TypeVar("Result")

NUM_PROCESSES = 2
# Longer than anything here takes, so that processes that wait for each other end in an error.
_END_S = 120.0


def run_in_both(action: Callable[[int], Result], folder: Path) -> list[Result]:
    """Run something in two processes that torch connects, and return what each returned.

    Args:
        action: Takes the process's rank. What it returns can be pickled.
        folder: Takes their results, and the file through which they meet.
    """
    context = multiprocessing.get_context("fork")
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    children = [
        context.Process(target=_run, args=(rank, action, folder, port), daemon=True)
        for rank in range(NUM_PROCESSES)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(_END_S)
        if child.is_alive():
            child.kill()
    ended = [folder / f"{rank}.pickle" for rank in range(NUM_PROCESSES)]
    assert all(found.exists() for found in ended), "a process ended without a result"
    results = [pickle.loads(found.read_bytes()) for found in ended]
    failures = [failure for _, failure in results if failure is not None]
    assert not failures, "\n".join(failures)
    return [result for result, _ in results]


def _run(rank: int, action: Callable[[int], Result], folder: Path, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(NUM_PROCESSES),
        "LOCAL_WORLD_SIZE": str(NUM_PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
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
