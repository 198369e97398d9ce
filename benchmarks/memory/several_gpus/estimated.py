"""Estimates of measured runs on several GPUs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from benchmarks.memory import formats
from benchmarks.memory.several_gpus.cases import (
    IN_FP8,
    Case,
    count_sequences,
    make_config,
)


def compare(file: Path, words: Collection[str] = ()) -> None:
    """Print how far each estimate is from what was measured.

    Args:
        file: What `measure_all` wrote.
        words: Only geometries whose names contain one of them.
    """
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    lines = [each for each in lines if not words or any(w in each["geometry"] for w in words)]
    for case, error in find_refused(lines).items():
        print(f"{case.describe()}: {error}\n    estimate: {refuse(case)}")
    lines = [line for line in lines if "error" not in line]
    print("| geometry | GPUs | way | run | measured, GiB | estimate minus measured |")
    print("|---|---:|---|---|---:|---|")
    for run, measured in group_runs(lines).items():
        estimated = simulate(run, first=measured[0])
        peaks = [line["peak_allocated_bytes"] for line in measured]
        # A GPU for which a map has no layer allocates nothing.
        off = [
            estimated[line["rank"]] / (line["peak_allocated_bytes"] or 1) - 1 for line in measured
        ]
        shown = " / ".join(f"{peak / 2**30:.2f}" for peak in peaks)
        print(
            f"| {run.geometry} | {run.num_gpus} | {run.way} | {run.batch_size} × "
            f"{run.num_prompt_tokens} + {run.num_new_tokens} | {shown} | "
            f"{' / '.join(f'{each:+.2%}' for each in off)} |",
            flush=True,
        )


def find_difference(estimated_bytes: int, measured_bytes: int) -> float:
    """Return an estimate minus what was measured, as a share of it; nothing is allocated without layers."""
    if not measured_bytes:
        return math.inf if estimated_bytes else 0
    return estimated_bytes / measured_bytes - 1


def find_refused(lines: Iterable[Mapping[str, Any]]) -> dict[Case, str]:
    """Return the error of the first rank of each case that failed."""
    failed = sorted((line for line in lines if "error" in line), key=lambda line: -line["rank"])
    return {Case(*(line[name] for name in Case._fields)): line["error"] for line in failed}


def refuse(case: Case, card: str = "NVIDIA H200") -> str | None:
    """Return why a plan can't be used, by moetool; None if it can."""
    from moetool.errors import UsageError
    from moetool.memory.layouts.shared_runs import SharedRuns
    from moetool.memory.machine.gpu_group import ParallelWay
    from moetool.memory.scenario import Scenario

    scenario = Scenario(dtype="bfloat16")
    runs = SharedRuns(load(case.geometry, card), scenario, ParallelWay(case.way))
    try:
        runs.refuse(case.num_gpus)
    except UsageError as error:
        return error.message
    return None


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
    scenario = Scenario(
        dtype="auto" if run.geometry in IN_FP8 else "bfloat16",
        batch_size=run.batch_size,
        num_prompt_tokens=run.num_prompt_tokens,
        num_new_tokens=run.num_new_tokens,
        task=Task.GENERATE if run.num_new_tokens else Task.FORWARD,
    )
    if run.way == "data":
        sizes = count_sequences(run.way, run.batch_size, num_gpus=run.num_gpus)
        alone = ModelRuns(loader)
        by_size = {size: alone.simulate(replace(scenario, batch_size=size)) for size in set(sizes)}
        found = [by_size[size] for size in sizes]
    elif run.way == "device-map":
        memory_bytes = find_gpu(first["card"]).memory_bytes
        found = run_by_device_map(
            loader, scenario, memory_bytes=memory_bytes, num_gpus=run.num_gpus
        )
    else:
        found = SharedRuns(loader, scenario, ParallelWay(run.way)).run_all(run.num_gpus)
    return [each.figures.peak_allocated_bytes for each in found]


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
        config = make_config(geometry)
        classes: Any = transformers.AutoModelForCausalLM._model_mapping
        config.architectures = [classes[type(config)].__name__]
        config.save_pretrained(folder)
    subject = find_subject(resolve_model(folder), source=AskedSource.AUTO, revision=None)
    return ModelLoader(SkeletonBuilder(subject), find_gpu(card))
