"""Measure time and memory of reading a long trace, in one run, and print them as Markdown.

    pip install --target site polars duckdb
    PYTHONPATH=site python benchmarks/questions/reading_traces.py 100_000_000 --folder /tmp/traces

The trace is made first: 64 experts, top-8, 16 layers, four domains, written as moetool writes traces,
0.5 GB for 100 million assignments. Each line is a separate process, so that peak memory is its own.
pandas, polars and duckdb count assignments by domain, layer and expert, which is what `count` does as
well, after checking every row. Assignments per second are those per second of processor time, all
threads together, with the start of the process included.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ASSIGNMENTS_PER_TOKEN = 16 * 8
MAKER = str(Path(__file__).with_name("long_trace.py"))
COUNT = """
import sys
from pathlib import Path
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.reader import open_trace
counts = count_experts(open_trace(Path(sys.argv[1])), by="domain", validate={validate})
print(sum(int(layer.assignments.sum()) for layer in counts.layers))
"""
WINDOWS = """
import sys
from pathlib import Path
from moetool.trace.reading.reader import open_trace
from moetool.trace.windows.reader import DecisionReader
reader = DecisionReader(open_trace(Path(sys.argv[1])), columns=("weight", "token_id"))
print(sum(item.experts.size for window in reader for item in window.layers.values()))
"""
PANDAS = """
import sys, pandas as pd
frame = pd.read_parquet(sys.argv[1], columns=["domain", "layer", "expert"])
print(int(frame.groupby(["domain", "layer", "expert"], observed=True).size().sum()))
"""
POLARS = """
import sys, polars as pl
counts = pl.scan_parquet(sys.argv[1]).group_by("domain", "layer", "expert").len()
print(counts.collect(engine="streaming")["len"].sum())
"""
DUCKDB = """
import sys, duckdb
query = "select domain, layer, expert, count(*) n from read_parquet(?) group by all"
print(sum(row[3] for row in duckdb.execute(query, [sys.argv[1]]).fetchall()))
"""
OTHERS = (
    ("pandas groupby", "pandas", PANDAS),
    ("polars", "polars", POLARS),
    ("duckdb", "duckdb", DUCKDB),
)
COMMANDS = ("validate", "balance", "specialize", "coactivation", "cache")


def main() -> None:
    """Make a trace and read it in every way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("num_assignments", type=int, nargs="?", default=10_000_000)
    parser.add_argument("--folder", type=Path, help="Keep the trace here.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / f"{arguments.num_assignments}.parquet"
        if not trace.exists():
            # In a separate process: a child's peak memory includes what its parent held.
            num_tokens = arguments.num_assignments // ASSIGNMENTS_PER_TOKEN
            subprocess.run([sys.executable, MAKER, str(trace), str(num_tokens)], check=True)
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"{arguments.num_assignments:,} assignments, {trace.stat().st_size / 1e6:,.0f} MB\n")
        print("| read by | wall, s | processor, s | M assignments/s/core | peak RSS, MiB |")
        print("|---|---:|---:|---:|---:|")
        python = [sys.executable, "-c"]
        runs = [
            ("moetool, counts with all checks", [*python, COUNT.format(validate=True), str(trace)]),
            ("moetool, counts without checks", [*python, COUNT.format(validate=False), str(trace)]),
            *(
                (name, [*python, code, str(trace)])
                for name, package, code in OTHERS
                if find_spec(package) is not None
            ),
            ("moetool, windows of decisions", [*python, WINDOWS, str(trace)]),
            *(
                (f"`moetool {name}`", make_command(name, trace, folder))
                for name in COMMANDS
                if has_command(name)
            ),
        ]
        for name, command in runs:
            print(f"| {name} | {measure(command, arguments.num_assignments)} |", flush=True)


def make_command(name: str, trace: Path, folder: Path) -> list[str]:
    """Return a command that writes its JSON report."""
    report = str(folder / f"{name}.json")
    return [sys.executable, "-m", "moetool", name, str(trace), "-o", report, "--force", "-q"]


def has_command(name: str) -> bool:
    """Return whether moetool has a command."""
    command = [sys.executable, "-m", "moetool", name, "--help"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def measure(command: Sequence[str], num_assignments: int) -> str:
    """Run a process, and return its figures as cells of a table."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        return "failed | | |"
    processor_s = used.ru_utime + used.ru_stime
    speed = num_assignments / processor_s / 1e6
    return f"{wall_s:.1f} | {processor_s:.1f} | {speed:.1f} | {used.ru_maxrss / 1024:,.0f}"


if __name__ == "__main__":
    main()
