"""Measure how long a checkpoint takes to load, and how much host memory, next to transformers alone.

    python -m benchmarks.tracing.loading [--device cuda] [--layers 48] [--pairs 3]

Writes random weights in the geometry of Qwen3-30B-A3B, cut to some layers, to a temporary folder.
Every load is a separate process that has imported everything and reads files that the system has
cached: one of `from_pretrained`, one of route-trace's own, one of its checks, in turn.
Anonymous memory is what a process holds itself; the pages of mapped weight files, which the system
can take back at any time, count in the resident set only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GIB = 2**30
SAMPLING_S = 0.005
WARM_UP = 1

# What is measured; everything that it needs has been imported.
Load = Callable[[], Any]


def main() -> None:
    """Measure both ways of loading, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--device", default=None, help="cpu or cuda; default: a GPU if there is one"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.run:
        way, folder = arguments.run
        print(json.dumps(measure(WAYS[way], Path(folder), arguments.device)))
        return
    import torch
    import transformers

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_checkpoint(Path(folder), num_layers=arguments.layers)
        print(f"{num_bytes / GIB:.1f} GiB of weights in bfloat16, {arguments.layers} layers\n")
        print(
            "| loaded by | s, median | over bare | processor, s, median | peak anonymous, GiB "
            "| peak resident, GiB |\n|---|---:|---:|---:|---:|---:|"
        )
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(arguments.pairs + WARM_UP):
            for way, kept in runs.items():
                run = run_process(way, folder, device)
                if number >= WARM_UP:
                    kept.append(run)
        bare = statistics.median(run["seconds"] for run in runs["from_pretrained"])
        for way, kept in runs.items():
            seconds, busy = (
                statistics.median(run[name] for run in kept) for name in ("seconds", "processor")
            )
            peaks = [
                f"{max(run[name] for run in kept) / GIB:.2f}" for name in ("anonymous", "resident")
            ]
            cells = [way, f"{seconds:.2f}", f"{seconds / bare:.2f}", f"{busy:.2f}", *peaks]
            print(f"| {' | '.join(cells)} |")


def write_checkpoint(folder: Path, *, num_layers: int) -> int:
    """Write a checkpoint with random weights, and return their bytes."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    make_config: Any = CONFIG_MAPPING["qwen3_moe"]
    config = make_config(
        hidden_size=2048,
        moe_intermediate_size=768,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        vocab_size=151_936,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    block = torch.randn(1 << 20, dtype=torch.bfloat16) * 0.02
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
    model.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run_process(way: str, folder: str, device: str) -> dict[str, float]:
    """Return the figures of one load in a separate process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.tracing.loading",
        "--run",
        way,
        folder,
        "--device",
        device,
    ]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    return figures


def measure(prepare: Callable[[Path, str], Load], folder: Path, device: str) -> dict[str, float]:
    """Return the seconds of a load, and the growth of host memory at its peak, in bytes."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if device.startswith("cuda"):
        torch.zeros(1, device=device)
    with torch.device("meta"):
        # Imports the model's class.
        transformers.AutoModelForCausalLM.from_config(
            config=transformers.AutoConfig.from_pretrained(folder)
        )
    load = prepare(folder, device)
    with sampling_memory() as grown:
        start, start_cpu = time.perf_counter(), time.process_time()
        model = load()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        figures = {
            "seconds": time.perf_counter() - start,
            "processor": time.process_time() - start_cpu,
        }
    parameters = () if model is None else model.parameters()
    assert all(each.device.type == device.split(":")[0] for each in parameters)
    return {**figures, **grown}


@contextmanager
def sampling_memory() -> Iterator[dict[str, float]]:
    """Yield a dict that holds the growth of this process's memory at its peak, in bytes."""
    before, peaks, done = read_memory(), {"anonymous": 0.0, "resident": 0.0}, threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_S):
            for name, value in read_memory().items():
                peaks[name] = max(peaks[name], value - before[name])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def read_memory() -> dict[str, float]:
    """Return the anonymous and the whole resident memory of this process, in bytes, on Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {name: int(lines[field].split()[0]) * 1024.0 for name, field in fields.items()}


def load_bare(folder: Path, device: str) -> Load:
    """Load as transformers' users do."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    return lambda: load(folder, dtype="auto", device_map={"": device}).eval()


def load_as_route_trace(folder: Path, device: str) -> Load:
    """Load as route-trace does, the configuration included."""
    from moetool.checkpoint.config import load_config
    from moetool.checkpoint.files import Checkpoint
    from moetool.tracing.running.load_model import load_model

    checkpoint = Checkpoint(name="random", folder=folder, revision=None)
    return lambda: load_model(
        checkpoint,
        load_config(checkpoint, trust_remote_code=False),
        auto_class="AutoModelForCausalLM",
        device_map={"": device},
    )


def check_as_route_trace(folder: Path, _device: str) -> Load:
    """Build the skeleton on which route-trace checks a model before it loads any weights."""
    from moetool.anatomy.skeleton.build import build_skeleton
    from moetool.checkpoint.config import load_config
    from moetool.checkpoint.files import Checkpoint
    from moetool.inspection.sources.from_skeleton import count_checkpoint
    from moetool.tracing.recording.scopes import find_recorded_model

    checkpoint = Checkpoint(name="random", folder=folder, revision=None)

    def check() -> Any:
        config = load_config(checkpoint, trust_remote_code=False)
        skeleton = build_skeleton(config, trust_remote_code=False)
        find_recorded_model(skeleton, layers=None, allow_inexact=False)
        count_checkpoint(config, skeleton)

    return check


WAYS: dict[str, Callable[[Path, str], Load]] = {
    "from_pretrained": load_bare,
    "route-trace": load_as_route_trace,
    "checks before, without weights": check_as_route_trace,
}


if __name__ == "__main__":
    main()
