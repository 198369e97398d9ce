"""Measure the memory of each of several GPUs that share a model, and compare the estimates with it.

    python -m benchmarks.memory.several_gpus measure FILE    # on all GPUs of a machine
    python -m benchmarks.memory.several_gpus compare FILE    # anywhere

Each way of sharing runs in separate processes, forked after the imports, because a model that was
deleted may leave some of its weights behind. The file gets a line of JSON for each rank and scenario.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

ALL_WAYS = ("tensor", "expert", "device-map")
CASES = {
    "Qwen3-30B-A3B, 4 layers": (*ALL_WAYS, "data"),
    "DeepSeek-V2-Lite, 4 layers": ALL_WAYS,
    "Mixtral-8x7B, 2 layers": ("tensor", "expert"),
    "Mixtral-8x7B, 4 layers": ("device-map",),
}
# Sequences, prompt tokens, new tokens; no new tokens for one call with all logits.
SCENARIOS = ((4, 1024, 8), (2, 512, 0), (16, 128, 24))
CASE_TIMEOUT_S, WHOLE_S = 45, 150


@dataclass(frozen=True)
class Case:
    """A way of sharing a model.

    Attributes:
        name: Of the geometry.
        path: Of the checkpoint.
        way: As `--parallel` has it.
        num_gpus: GPUs of the machine.
        file: Gets the figures.
    """

    name: str
    path: Path
    way: str
    num_gpus: int
    file: Path


def main() -> None:
    """Measure, or compare with what was measured."""
    action, file = sys.argv[1], Path(sys.argv[2])
    {"measure": measure_all, "compare": compare}[action](file)


def measure_all(file: Path) -> None:
    """Measure every way of sharing each model."""
    # Otherwise a look for GPUs would keep forked processes from using them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    num_gpus = torch.cuda.device_count()
    began = time.perf_counter()
    print(f"{num_gpus} GPUs, torch {torch.__version__}, transformers {transformers.__version__}")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    context = mp.get_context("fork")
    builder = context.Process(target=build_all, args=(folder,))
    builder.start()
    try:
        for name, ways in CASES.items():
            path = folder / name
            while builder.is_alive() and not (path / "done").exists():
                time.sleep(0.1)
            for way in ways:
                left = WHOLE_S - (time.perf_counter() - began)
                if left < 8:
                    print(f"(no time left for {way} of {name})", flush=True)
                    continue
                case = Case(name, path, way, num_gpus, file)
                run_case(context, case, timeout_s=min(CASE_TIMEOUT_S, left))
            shutil.rmtree(path, ignore_errors=True)
    finally:
        builder.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)


def make_config(name: str) -> Any:
    """Return the configuration of a cut geometry."""
    from benchmarks.tracing.parallel_on_gpus import GEOMETRIES

    known = next(key for key in GEOMETRIES if key.split(",")[0] == name.split(",")[0])
    model_type, values = GEOMETRIES[known]
    num_layers = int(name.split()[-2])
    make: Any = transformers.CONFIG_MAPPING[model_type]
    changes = {"num_hidden_layers": num_layers, "max_position_embeddings": 4096, "pad_token_id": 0}
    return make(**values | changes)


def build_all(folder: Path) -> None:
    """Write the checkpoints, from a pattern of random numbers, without a GPU."""
    torch.set_num_threads(8)
    for name in CASES:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                make_config(name), dtype=torch.bfloat16
            )
        model.to_empty(device="cpu")
        pattern = torch.randn(2**22).mul_(0.02).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                for piece in parameter.view(-1).split(pattern.numel()):
                    piece.copy_(pattern[: piece.numel()])
        model.save_pretrained(folder / name)
        (folder / name / "done").touch()
        del model


def run_case(context: Any, case: Case, *, timeout_s: float) -> None:
    """Run one way of sharing in separate processes, and end those that take too long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    num = case.num_gpus if case.way in ("tensor", "expert") else 1
    began = time.perf_counter()
    processes = [context.Process(target=work, args=(case, rank, port)) for rank in range(num)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(timeout_s - (time.perf_counter() - began), 0))
    for process in processes:
        if process.is_alive():
            print(f"(ended {case.way} of {case.name} after {timeout_s:.0f} s)", flush=True)
            process.kill()
            process.join()


def work(case: Case, rank: int, port: int) -> None:
    """Measure in one process."""
    try:
        measure(case, rank, port)
    except BaseException:
        print(
            f"(failed: {case.way} of {case.name}, rank {rank})\n{traceback.format_exc()}",
            flush=True,
        )
        raise
    finally:
        sys.stdout.flush()
        os._exit(0)


def measure(case: Case, rank: int, port: int) -> None:
    """Load a model and write down the memory of its scenarios."""
    way, num_gpus = case.way, case.num_gpus
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    devices = range(num_gpus) if way == "device-map" else (rank,)
    used: dict[str, list[int]] = {}
    for device in devices:
        torch.cuda.set_device(device)
        torch.ones(1, device=f"cuda:{device}")
        torch.cuda.synchronize()
    torch.cuda.set_device(devices[0])
    wishes: dict[str, Any] = {"device_map": {"": 0}}
    if way == "device-map":
        wishes = {"device_map": "auto"}
    used["context"] = [count_used(device) for device in devices]
    if way in ("tensor", "expert"):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        from transformers.distributed.configuration_utils import DistributedConfig

        size: dict[str, Any] = {"tp_size": num_gpus, "tp_plan": "auto"}
        if way == "expert":
            size = {"tp_size": num_gpus, "ep_size": num_gpus}
        wishes = {"distributed_config": DistributedConfig(**size)}
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        case.path, dtype=torch.bfloat16, **wishes
    )
    model.eval()
    # Every sequence runs to its end.
    model.generation_config.eos_token_id = None
    synchronize(devices)
    loading_s = time.perf_counter() - began
    used["loaded"] = [count_used(device) for device in devices]
    weights = [torch.cuda.memory_allocated(device) for device in devices]
    largest = [torch.cuda.max_memory_allocated(device) for device in devices]
    for batch_size, num_prompt_tokens, num_new_tokens in SCENARIOS:
        rows = batch_size // num_gpus if way == "data" else batch_size
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        ids = torch.randint(
            3, 32000, (rows, num_prompt_tokens), generator=torch.Generator().manual_seed(0)
        ).to(f"cuda:{devices[0]}")
        with torch.inference_mode():
            if num_new_tokens:
                model.generate(ids, max_new_tokens=num_new_tokens, disable_compile=True)
            else:
                model(ids)
        synchronize(devices)
        for place, device in enumerate(devices):
            line = {
                "geometry": case.name,
                "way": way,
                "num_gpus": num_gpus,
                "rank": device,
                "batch_size": batch_size,
                "num_prompt_tokens": num_prompt_tokens,
                "num_new_tokens": num_new_tokens,
                "weights_bytes": weights[place],
                "loading_peak_bytes": largest[place],
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
                "reserved_bytes": torch.cuda.memory_reserved(device),
                "used_with_context_bytes": used["context"][place],
                "used_after_loading_bytes": used["loaded"][place],
                "used_bytes": count_used(device),
                "loading_s": round(loading_s, 1),
                "card": torch.cuda.get_device_name(device),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            if way == "device-map" and batch_size == SCENARIOS[0][0] and not place:
                device_map: dict[str, Any] = vars(model)["hf_device_map"]
                line["map"] = {key: str(value) for key, value in device_map.items()}
            # Several processes write to it, each a whole line at once.
            with case.file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


def count_used(device: int) -> int:
    """Return the bytes in use on a device, by all processes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def synchronize(devices: Any) -> None:
    """Wait for all devices."""
    for device in devices:
        torch.cuda.synchronize(device)


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
        dtype="bfloat16",
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

    config = make_config(geometry)
    classes: Any = transformers.AutoModelForCausalLM._model_mapping
    config.architectures = [classes[type(config)].__name__]
    folder = tempfile.mkdtemp()
    config.save_pretrained(folder)
    subject = find_subject(resolve_model(folder), source=AskedSource.AUTO, revision=None)
    return ModelLoader(SkeletonBuilder(subject), find_gpu(card))


if __name__ == "__main__":
    main()
