"""Measure how fast rows are made and written, in one run, and print it as Markdown.

    python -m benchmarks.tracing.writing_rows

Two simulated runs, in pieces of a million assignments: 48 layers that choose 8 of 128 experts, and 4
layers that choose 2 of 16. Speeds are millions of assignments per second, the best of some rounds: per
second of processor time, all threads together, and per second of wall time with one and with two
threads. Each thread makes or encodes other pieces: where they are together twice as fast as one, neither
waits for Python's lock. Files are joined by one thread, CSV by as many as there are cores.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from moetool.trace.decisions import LayerDecisions, TracedTokens
from moetool.trace.metadata import TraceMetadata
from moetool.trace.rows import assignment_rows
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.formats.csv_text import csv_bytes, join_csv
from moetool.trace.writing.formats.joined_files import join_parquet
from moetool.trace.writing.parquet_files import new_parquet
from moetool.trace.writing.writer import TraceFile

SHAPES = {"48 layers, 8 of 128": (48, 8, 128), "4 layers, 2 of 16": (4, 2, 16)}
ROWS_PER_PIECE = 1_000_000
TOKENS_PER_PROMPT = 500
LARGEST_TOKEN_ID = 50_000
ROUNDS = 5
PIECES = 6
FOOTER = TraceMetadata().to_footer()

Piece = tuple[TracedTokens, list[LayerDecisions]]


def main() -> None:
    """Measure every step for every shape."""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(f"pyarrow {pa.__version__}, numpy {np.__version__}")
    print("\n| run | step | per core | one thread | two threads | MB per million |")
    print("|---|---|---:|---:|---:|---:|")
    for name, shape in SHAPES.items():
        for step, figures in measure(simulate(*shape)):
            print(f"| {name} | {step} | {figures} |", flush=True)


def simulate(num_layers: int, top_k: int, num_experts: int) -> Piece:
    """Return a piece of about a million rows."""
    rng = np.random.default_rng(0)
    num_tokens = ROWS_PER_PIECE // (num_layers * top_k)
    number = np.arange(num_tokens, dtype=np.int32)
    token_id = np.minimum(rng.zipf(1.3, num_tokens), LARGEST_TOKEN_ID).astype(np.int32)
    prompts = range(-(-num_tokens // TOKENS_PER_PROMPT))
    tokens = TracedTokens(
        prompt_ids=[f"prompt-{prompt:07d}" for prompt in prompts],
        domains=[("code", "law", "mathematics", "prose")[prompt % 4] for prompt in prompts],
        prompt=number // TOKENS_PER_PROMPT,
        position=number % TOKENS_PER_PROMPT,
        phase=np.zeros(num_tokens, dtype=np.int8),
        token_id=token_id,
        pieces=[f"t{number}" for number in np.unique(token_id)],
    )
    layers = []
    for layer in range(num_layers):
        bias = rng.normal(0, 0.7, num_experts)
        scores = np.exp(bias + rng.gumbel(size=(num_tokens, num_experts)))
        experts = np.argsort(-scores, axis=1)[:, :top_k]
        weights = np.take_along_axis(scores, experts, axis=1)
        weights /= weights.sum(axis=1, keepdims=True)
        layers.append(
            LayerDecisions("decoder", layer, experts.astype(np.int16), weights.astype(np.float32))
        )
    return tokens, layers


def measure(piece: Piece) -> Iterator[tuple[str, str]]:
    """Yield each step with its figures, as cells of the table."""
    rows = assignment_rows(*piece)

    def encode(table: pa.Table, path: Path) -> None:
        with new_parquet(path, TRACE_SCHEMA, footer=FOOTER) as writer:
            writer.write_table(table)

    def make_and_encode(path: Path) -> None:
        encode(assignment_rows(*piece), path)

    for step, work in (
        ("make rows", lambda _: assignment_rows(*piece)),
        ("encode as Parquet", lambda path: encode(rows, path)),
        ("make and encode", make_and_encode),
        ("spell as CSV", lambda _: csv_bytes(rows)),
    ):
        one, two = (run_in_threads(work, threads) for threads in (1, 2))
        num_millions = rows.num_rows * PIECES / 1e6
        yield step, show(num_millions, processor=one[1], one=one[0], two=two[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [folder / f"{index}.parquet" for index in range(PIECES)]
        for part in parts:
            make_and_encode(part)
        num_millions = rows.num_rows * len(parts) / 1e6
        joined = folder / "joined.parquet", folder / "joined.csv"
        join = partial(join_parquet, parts, joined[0], TRACE_SCHEMA, footer=FOOTER)
        wall, processor = best_times(join, *joined)
        yield "join parts as .parquet", show(num_millions, processor=processor, one=wall)
        wall, processor = best_times(partial(join_csv, parts, joined[1], TRACE_SCHEMA), *joined)
        yield "join parts as .csv", show(num_millions, processor=processor, two=wall)
        for suffix in (".parquet", ".csv"):
            target = folder / f"whole{suffix}"
            wall, processor = best_times(partial(write_trace, target, rows))
            figures = show(num_millions, processor=processor, one=wall)
            size = target.stat().st_size / num_millions / 1e6
            yield f"encode, write parts and join them as {suffix}", f"{figures}{size:.1f}"


def show(num_millions: float, *, processor: float, one: float = 0, two: float = 0) -> str:
    """Return speeds as cells of the table, given times in seconds; 0 stands for none."""
    return "".join(
        f"{num_millions / seconds:.1f} | " if seconds else " | "
        for seconds in (processor, one, two)
    )


def write_trace(target: Path, rows: pa.Table) -> None:
    """Write a trace of all pieces, one after another."""
    with TraceFile(target, metadata=TraceMetadata(), replace_existing=True) as sink:
        for _ in range(PIECES):
            sink.write(rows)
        sink.finish(TraceMetadata())


def run_in_threads(work: Callable[[Path], object], num_threads: int) -> tuple[float, float]:
    """Return what `best_times` does for work on `PIECES` pieces, divided among threads."""

    def work_through(index: int) -> None:
        path = folder / f"{index}.parquet"
        for _ in range(PIECES // num_threads):
            work(path)
            path.unlink(missing_ok=True)

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(num_threads) as pool:
        folder = Path(name)
        return best_times(lambda: list(pool.map(work_through, range(num_threads))))


def best_times(work: Callable[[], object], *targets: Path) -> tuple[float, float]:
    """Return the shortest wall and processor time of some work in seconds.

    Args:
        work: The work, done several times.
        targets: Files that it writes, removed before.
    """
    times = []
    for _ in range(ROUNDS):
        for target in targets:
            target.unlink(missing_ok=True)
        wall, processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    walls, processors = zip(*times, strict=True)
    return min(walls), min(processors)


if __name__ == "__main__":
    main()
