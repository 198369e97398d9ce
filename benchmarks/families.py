"""Measure the cost of recording in every family, as the ratio of a forward with and without it.

    python benchmarks/families.py

The models are tiny, so nearly all of the time is Python and the ratios are worst cases. Rounds of
forwards with and without the recorder alternate on one thread. The first call under a recorder, in
which it finds the routers, is not counted.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moetool import RoutingRecorder
from tests.families.tiny.models import available, build_family, text_inputs
from tests.families.tiny.proof import why_refused

NUM_ROUNDS, CALLS_PER_ROUND, NUM_ROWS, NUM_COLUMNS = 3, 5, 8, 15


def measure(name: str) -> tuple[str, float, float]:
    """Return a family's rule, its plain forward in milliseconds, and the ratio."""
    model = build_family(name)
    inputs = text_inputs(model, num_rows=NUM_ROWS, num_columns=NUM_COLUMNS)
    recorder = RoutingRecorder(model)

    def run() -> None:
        model(**inputs)

    plain, recorded = [], []
    with torch.inference_mode():
        for _ in range(NUM_ROUNDS):
            run()
            plain += [clock(run) for _ in range(CALLS_PER_ROUND)]
            with recorder:
                run()
                recorded += [clock(run) for _ in range(CALLS_PER_ROUND)]
            recorder.take_calls()
    base = statistics.median(plain)
    return recorder.layers[0].rule.value, 1000 * base, statistics.median(recorded) / base


def clock(run: Callable[[], None]) -> float:
    """Return how long a call takes, in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure every family and print a table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    measured = {name: measure(name) for name in available() if why_refused(name) is None}
    lines = [
        "| rule | families | plain forward, ms | ratio, median | ratio, largest |",
        "|---|---:|---:|---:|---|",
    ]
    for rule in dict.fromkeys(item[0] for item in measured.values()):
        own = {name: item for name, item in measured.items() if item[0] == rule}
        worst = max(own, key=lambda name: own[name][2])
        lines.append(
            f"| {rule} | {len(own)} | {statistics.median(item[1] for item in own.values()):.1f} | "
            f"{statistics.median(item[2] for item in own.values()):.2f} | "
            f"{own[worst][2]:.2f} ({worst}) |"
        )
    everything = [item[2] for item in measured.values()]
    lines.append(f"\nall {len(everything)}: median {statistics.median(everything):.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
