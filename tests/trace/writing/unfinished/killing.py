"""Kill runs that write pieces as fast as they can, and look at what they leave.

`python -m tests.trace.writing.unfinished.killing FOLDER NUM_KILLS` is a process of its own: it forks, and nothing
else may run in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pyarrow as pa

from moetool.trace.reading.reader import read_trace
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import BEFORE, columns_of
from tests.trace.writing.runs import AFTER
from tests.trace.writing.unfinished.pieces import IDENTITY, Window, make_window

_NUM_WINDOWS = 5
_LONGEST_LIFE_S = 0.15
_SLOW = 3


def write(target: Path, windows: Sequence[Window], *, report: int) -> None:
    """Write the windows that are missing, with two threads, and report each part that was taken.

    Args:
        target: The trace.
        windows: All of the run.
        report: Descriptor that takes a line with the rows taken so far.
    """
    resume = partial_folder(target).exists()
    with (
        TraceFile(target, metadata=BEFORE, identity=IDENTITY, resume=resume) as sink,
        ThreadPoolExecutor(2) as pool,
    ):
        finished = sink.list_finished()
        num_rows = sum(each.num_rows for each in finished.values())
        os.write(report, f"{num_rows}\n".encode())
        for window in windows:
            if window.index in finished:
                continue
            kept = sink.kept_batches(window.index)
            if window.index % _SLOW == 0:
                for index, prompts in enumerate(((0, 2), (1, 3))):
                    if index not in kept:
                        sink.keep_batch(window.batch(index, prompts))
            for encoded in pool.map(sink.encode, window.cut(1 + window.index % 3)):
                sink.commit(encoded)
            num_rows += sum(rows.num_rows for rows in window.rows)
            os.write(report, f"{num_rows}\n".encode())
        sink.finish(AFTER)


def kill_once(target: Path, windows: Sequence[Window], *, life_s: float) -> tuple[bool, int]:
    """Kill a run after some time; return whether it was killed, and the rows that it had taken."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            write(target, windows, report=writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(life_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    with os.fdopen(reader, "rb") as file:
        taken = [int(line) for line in file.read().split()]
    return os.WIFSIGNALED(status), max(taken, default=0)


def main(folder: Path, num_kills: int) -> None:
    """Kill runs a number of times, each going on from the one before, and print what was seen.

    A trace that is there is whole; otherwise its parts hold at least all rows that were taken, and
    those that were there before.
    """
    windows = [make_window(index) for index in range(_NUM_WINDOWS)]
    rows = pa.concat_tables([rows for window in windows for rows in window.rows]).to_pydict()
    random = Random(7)
    seen = dict.fromkeys(
        ("kills", "traces", "left_parts", "left_nothing", "in_swap", "in_finish"), 0
    )
    target, num_before = folder / "0.parquet", 0
    while seen["kills"] < num_kills:
        was_killed, num_taken = kill_once(
            target, windows, life_s=random.uniform(0, _LONGEST_LIFE_S)
        )
        seen["kills"] += was_killed
        partial = partial_folder(target)
        if target.exists():
            assert columns_of(read_trace(target)) == rows
            seen["traces"] += 1
            num_before, target = 0, folder / f"{seen['traces']}.parquet"
        elif any(partial.glob("part-*.parquet")):
            frame = read_trace(partial)
            assert max(num_taken, num_before) <= len(frame) <= len(rows["prompt_id"])
            num_before = len(frame)
            seen["left_parts"] += 1
            seen["in_swap"] += any(partial.glob("_part-*.waiting"))
            seen["in_finish"] += any(partial.glob("_whole*"))
        else:
            assert num_taken == num_before == 0
            seen["left_nothing"] += 1
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
