"""Estimates of measured runs on several GPUs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from benchmarks.memory import formats
from benchmarks.memory.several_gpus.cases import IN_FP8
from benchmarks.tracing.geometries import make_cut_config


def compare(file: Path) -> None:
    """Print how far each estimate is from what was measured."""
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    print("| geometry | GPUs | way | run | measured, GiB | estimate minus measured |")
    print("|---|---:|---|---|---:|---|")
    for run, measured in group_runs(lines).items():
        estimated = simulate(run, first=measured[0])
        peaks = [line["peak_allocated_bytes"] for line in measured]
        off = [estimated[line["rank"]] / line["peak_allocated_bytes"] - 1 for line in measured]
        shown = " / ".join(f"{peak / 2**30:.2f}" for peak in peaks)
        print(
            f"| {run.geometry} | {run.num_gpus} | {run.way} | {run.batch_size} × "
            f"{run.num_prompt_tokens} + {run.num_new_tokens} | {shown} | "
            f"{' / '.join(f'{each:+.2%}' for each in off)} |",
            flush=True,
        )


class Run(NamedTuple):
    """A scenario of a case."""

    geometry: str
    num_gpus: int
    way: str
    batch_size: int
    num_prompt_tokens: int
    num_new_tokens: int


def group_runs(lines: list[dict[str, Any]]) -> dict[Run, list[dict[str, Any]]]:
    """Return the lines of each run, by rank."""
    runs: dict[Run, list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault(Run(*(line[name] for name in Run._fields)), []).append(line)
    return {run: sorted(found, key=lambda line: line["rank"]) for run, found in runs.items()}


def simulate(run: Run, *, first: Mapping[str, Any]) -> list[int]:
    """Return the peak of allocated memory on each rank."""
    from moetool.catalogue.gpus import find_gpu
    from moetool.memory.layouts.mapped_runs import run_by_device_map
    from moetool.memory.layouts.shared_runs import SharedRuns
    from moetool.memory.machine.gpu_group import ParallelWay
    from moetool.memory.scenario import Scenario, Task
    from moetool.memory.simulated.model_runs import ModelRuns

    loader = load(run.geometry, first["card"])
    batch_size = run.batch_size // run.num_gpus if run.way == "data" else run.batch_size
    scenario = Scenario(
        dtype="auto" if run.geometry in IN_FP8 else "bfloat16",
        batch_size=batch_size,
        num_prompt_tokens=run.num_prompt_tokens,
        num_new_tokens=run.num_new_tokens,
        task=Task.GENERATE if run.num_new_tokens else Task.FORWARD,
    )
    way = ParallelWay(run.way)
    if way is ParallelWay.DATA:
        found = [ModelRuns(loader).run(scenario)]
    elif way is ParallelWay.DEVICE_MAP:
        memory_bytes = find_gpu(first["card"]).memory_bytes
        found = [
            *run_by_device_map(loader, scenario, memory_bytes=memory_bytes, num_gpus=run.num_gpus)
        ]
    else:
        found = [*SharedRuns(loader, scenario, way).run_all(run.num_gpus)]
    return [each.figures.peak_allocated_bytes for each in found if each is not None]


@cache
def load(geometry: str, card: str) -> Any:
    """Return a loader of a cut geometry on a card."""
    from moetool.catalogue.gpus import find_gpu
    from moetool.checkpoint.reference import resolve_model
    from moetool.checkpoint.subject import AskedSource, find_subject
    from moetool.memory.loaded.loaded_model import ModelLoader
    from moetool.memory.loaded.skeletons import SkeletonBuilder

    folder = tempfile.mkdtemp()
    if geometry in IN_FP8:
        (Path(folder) / "config.json").write_text(json.dumps(formats.read_cut_config(geometry)))
    else:
        config = make_cut_config(geometry, pad_token_id=0)
        classes: Any = transformers.AutoModelForCausalLM._model_mapping
        config.architectures = [classes[type(config)].__name__]
        config.save_pretrained(folder)
    subject = find_subject(resolve_model(folder), source=AskedSource.AUTO, revision=None)
    return ModelLoader(SkeletonBuilder(subject), find_gpu(card))
