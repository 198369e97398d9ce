"""Kill `route-trace` at random moments, resume it, and compare its rows with those of a run left alone.

    python benchmarks/tracing/kill_and_resume.py [NUM_KILLS]

One process imports the libraries and forks a copy of itself for each run of the command, so that a
kill falls into the run and not into the start of Python. The commands trace the demonstration model
over `sample_prompts`, sample a few tokens, and write probabilities, saliency and texts.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import torch
import transformers  # noqa: F401

from moetool import read_trace
from moetool.cli.main import main as run_command
from moetool.trace.companions import probabilities_path, saliency_path
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import TraceFile

PROMPTS = Path(__file__).parents[2] / "sample_prompts"
OPTIONS = (
    *("--max-new-tokens", "3", "--temperature", "1.5", "--probabilities", "--saliency"),
    *("--limit-per-domain", "3", "--batch-size", "1", "--quiet"),
)
SHARE_KILLED = 0.7


def run(folder: Path, *, resume: bool, report: int) -> int:
    """Start the command in a copy of this process, and return its id.

    Args:
        folder: Takes the outputs.
        resume: Go on with what an earlier run left there.
        report: Descriptor that takes the number of rows of each piece that the trace took.
    """
    child = os.fork()
    if child:
        return child
    commit = TraceFile.commit

    def commit_and_report(self: TraceFile, encoded: object) -> None:
        commit(self, encoded)  # type: ignore[arg-type]
        os.write(report, f"{encoded.num_rows}\n".encode())  # type: ignore[attr-defined]

    TraceFile.commit = commit_and_report  # type: ignore[method-assign]
    words = ["moetool", "route-trace", "demo", "--prompts", PROMPTS, "-o", folder / "t.parquet"]
    sys.argv = [*map(str, words), *OPTIONS, "--save-text", str(folder / "t.jsonl")]
    sys.argv += ["--resume"] if resume else []
    try:
        run_command()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(1)


def hash_outputs(folder: Path) -> str:
    """Return a hash of all outputs: rows, metadata, probabilities, saliency and texts."""
    target = folder / "t.parquet"
    digest = hashlib.sha256()
    for path in (target, probabilities_path(target)):
        table = pq.read_table(path)
        digest.update(repr(table.to_pandas().to_csv(index=False)).encode())
    digest.update(pq.read_metadata(target).metadata[b"moetool"])
    saliency = torch.load(saliency_path(target), weights_only=True)
    for layer, values in saliency.items():
        for name, value in values.items():
            digest.update(f"{layer} {name}".encode() + value.numpy().tobytes())
    digest.update((folder / "t.jsonl").read_bytes())
    return digest.hexdigest()


def count_rows(folder: Path) -> int:
    """Return the rows of an unfinished trace, read with all checks, and by pandas as well."""
    import pandas as pd

    partial = partial_folder(folder / "t.parquet")
    if not any(partial.glob("part-*.parquet")):
        return 0
    num_rows = len(read_trace(partial))
    assert len(pd.read_parquet(partial)) == num_rows
    return num_rows


def main(num_kills: int) -> None:
    """Kill runs, and print what they left."""
    torch.set_num_threads(1)
    random = Random(0)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        started = time.monotonic()
        child = run(whole, resume=False, report=os.open(os.devnull, os.O_WRONLY))
        assert os.waitpid(child, 0)[1] == 0
        longest_s = time.monotonic() - started
        expected = hash_outputs(whole)
        print(f"a run left alone: {longest_s:.1f} s, {len(read_trace(whole / 't.parquet')):,} rows")
        numbers = count()
        folder = Path(name) / str(next(numbers))
        num_before = 0
        while seen["kills"] < num_kills:
            folder.mkdir(exist_ok=True)
            reader, writer = os.pipe()
            child = run(folder, resume=partial_folder(folder / "t.parquet").exists(), report=writer)
            os.close(writer)
            # Some of those that go on are left alone.
            if not num_before or random.random() < SHARE_KILLED:
                time.sleep(random.uniform(0, longest_s))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            with os.fdopen(reader, "rb") as file:
                num_taken = sum(int(line) for line in file.read().split())
            seen["kills"] += os.WIFSIGNALED(status)
            assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
            if not (folder / "t.parquet").exists():
                num_rows = count_rows(folder)
                seen["left parts" if num_rows else "left nothing"] += 1
                # Nothing that was taken is lost, and nothing that was there before.
                assert num_rows >= max(num_before, num_taken), (num_rows, num_before, num_taken)
                num_before = num_rows
            elif os.WIFSIGNALED(status):
                assert len(read_trace(folder / "t.parquet")) == len(read_trace(whole / "t.parquet"))
                seen["killed when the trace was in its place"] += 1
                folder, num_before = Path(name) / str(next(numbers)), 0
            else:
                assert hash_outputs(folder) == expected
                seen["resumed to the same outputs"] += 1
                folder, num_before = Path(name) / str(next(numbers)), 0
        if not (folder / "t.parquet").exists() and partial_folder(folder / "t.parquet").exists():
            child = run(folder, resume=True, report=os.open(os.devnull, os.O_WRONLY))
            assert os.waitpid(child, 0)[1] == 0
            assert hash_outputs(folder) == expected
            seen["resumed to the same outputs"] += 1
    for what, number in seen.items():
        print(f"{what}: {number}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
