"""Measure how long inspecting a model takes, with moetool and with its peers, and print Markdown.

    python benchmarks/inspecting.py [--hf-mem PYTHON]

PYTHON is the interpreter of an environment that has hf-mem; without it, that row is left out. The
peers read only repositories on the Hub. They are served one on the loopback address, so that no
network is measured. The ratios are the result; the absolute figures show what they rest on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.catalogue.published import read_published_config

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = 5
SERVED = "mixtral-8x7b"
SKELETONS = ("mixtral-8x7b", "qwen3-235b-a22b", "deepseek-v3", "deepseek-v4-pro", "jamba-v0.1")

# Imports what the skeleton path imports, the family's own module included, and no more.
IMPORTS = """
import torch, transformers, moetool.inspection.sources.from_skeleton
from transformers import CONFIG_MAPPING
from moetool.anatomy.skeleton.build import find_whole_class
from moetool.catalogue.published import read_published_config
raw = read_published_config({name!r})
find_whole_class(CONFIG_MAPPING[raw["model_type"]].from_dict(raw))
"""

# hf-mem asks the Hub itself, whatever HF_ENDPOINT says.
HF_MEM = """
import sys, httpx2
from hf_mem.cli import main
request = httpx2.AsyncClient.request
async def ask(self, method, url, **wishes):
    url = str(url).replace("https://huggingface.co", {endpoint!r})
    return await request(self, method, url, **wishes)
httpx2.AsyncClient.request = ask
sys.argv = ["hf-mem", "--model-id", "org/model"]
main()
"""


def main() -> None:
    """Run every measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hf-mem", type=Path, help="interpreter of an environment with hf-mem")
    hf_mem = parser.parse_args().hf_mem
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(
        f"\n{SERVED}, a checkpoint of its shapes:\n\n| command | wall, median | ratio |\n|---|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_sparse_checkpoint(checkpoint, SERVED)
        with serve(checkpoint) as endpoint:
            measure_peers(checkpoint, endpoint, cache=Path(folder), hf_mem=hf_mem)
    print(
        "\n| skeleton path | imports | whole command | beyond the imports |\n|---|---:|---:|---:|"
    )
    for name in SKELETONS:
        imports = time_command([sys.executable, "-c", IMPORTS.format(name=name)])
        whole = time_command([sys.executable, "-m", "moetool", "inspect", name])
        print(f"| {name} | {imports:.2f} s | {whole:.2f} s | {whole - imports:.2f} s |", flush=True)


def measure_peers(checkpoint: Path, endpoint: str, *, cache: Path, hf_mem: Path | None) -> None:
    """Print how long each command takes, also relative to moetool's headers path."""
    moetool = [sys.executable, "-m", "moetool", "inspect"]
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    estimate = [accelerate, "estimate-memory", "org/model", "--library_name", "transformers"]
    commands = {
        "moetool inspect FOLDER --source headers": [
            *moetool,
            str(checkpoint),
            "--source",
            "headers",
        ],
        "moetool inspect org/model --source headers": [
            *moetool,
            "org/model",
            "--source",
            "headers",
        ],
        "moetool inspect FOLDER": [*moetool, str(checkpoint)],
        f"accelerate estimate-memory {_version(sys.executable, 'accelerate')}": estimate,
    }
    if hf_mem is not None:
        code = HF_MEM.format(endpoint=endpoint)
        commands[f"hf-mem {_version(str(hf_mem), 'hf-mem')}"] = [str(hf_mem), "-c", code]
    first = None
    for name, command in commands.items():
        seconds = time_command(command, endpoint=endpoint, cache=cache)
        first = first or seconds
        print(f"| `{name}` | {seconds:.2f} s | {seconds / first:.1f} |", flush=True)


def time_command(command: list[str], *, endpoint: str = "", cache: Path | None = None) -> float:
    """Return the median wall time of a command in seconds, after one run that is not counted."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0" if endpoint else "1"}
    if endpoint:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    times = []
    for run in range(RUNS + 1):
        if cache is not None:
            environment["HF_HOME"] = str(cache / f"cache-{run}")
        started = time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=True, cwd=REPOSITORY)
        times.append(time.perf_counter() - started)
        if cache is not None:
            shutil.rmtree(cache / f"cache-{run}", ignore_errors=True)
    return statistics.median(times[1:])


def write_sparse_checkpoint(folder: Path, name: str) -> None:
    """Write a published model's configuration and a weight file with a true header and no data."""
    config = read_published_config(name)
    made = transformers.CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(config))
    skeleton = build_whole_skeleton(made, dtype=torch.bfloat16)
    header: dict[str, object] = {}
    end = 0
    for path, parameter in skeleton.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        header[path] = {
            "dtype": "BF16",
            "shape": list(parameter.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder as org/model; yield the address."""
    command = [sys.executable, "-m", "tests.checkpoint.fake_hub", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        try:
            yield hub.stdout.readline().strip()
        finally:
            hub.terminate()


def _version(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    completed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return completed.stdout.strip()


if __name__ == "__main__":
    main()
