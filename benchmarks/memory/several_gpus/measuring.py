"""Runs of models that several GPUs share, each run in separate processes."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.memory import formats
from benchmarks.memory.several_gpus.cases import CASES, IN_FP8
from benchmarks.tracing.geometries import make_cut_config

# Sequences, prompt tokens, new tokens; no new tokens for one call with all logits.
SCENARIOS = ((4, 1024, 8), (2, 512, 0), (16, 128, 24))
CASE_TIMEOUT_S, WHOLE_S = 45, 150
# Kernels for fp8 are compiled on the machine.
CASE_IN_FP8_TIMEOUT_S, WHOLE_IN_FP8_S = 120, 400


@dataclass(frozen=True)
class Case:
    """A way of sharing a model.

    Attributes:
        name: Of the geometry.
        path: Of the checkpoint.
        way: As `--parallel` has it.
        num_gpus: GPUs of the machine.
        file: Gets the figures.
        kernels: The sources of kernels for fp8, if the checkpoint is in fp8.
    """

    name: str
    path: Path
    way: str
    num_gpus: int
    file: Path
    kernels: Path | None = None


def measure_all(file: Path, *, kernels: Path | None) -> None:
    """Measure every way of sharing each model: those in bfloat16, or, with kernels, those in fp8."""
    # Otherwise a look for GPUs would keep forked processes from using them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    num_gpus = torch.cuda.device_count()
    cases = CASES if kernels is None else IN_FP8
    case_timeout_s = CASE_TIMEOUT_S if kernels is None else CASE_IN_FP8_TIMEOUT_S
    whole_s = WHOLE_S if kernels is None else WHOLE_IN_FP8_S
    began = time.perf_counter()
    print(f"{num_gpus} GPUs, torch {torch.__version__}, transformers {transformers.__version__}")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    context = mp.get_context("fork")
    builder = context.Process(target=build_all, args=(folder, tuple(cases)))
    builder.start()
    try:
        for name, ways in cases.items():
            path = folder / name
            while builder.is_alive() and not (path / "done").exists():
                time.sleep(0.1)
            for way in ways:
                left = whole_s - (time.perf_counter() - began)
                if left < 8:
                    print(f"(no time left for {way} of {name})", flush=True)
                    continue
                case = Case(name, path, way, num_gpus, file, kernels)
                run_case(context, case, timeout_s=min(case_timeout_s, left))
            shutil.rmtree(path, ignore_errors=True)
    finally:
        builder.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)


def build_all(folder: Path, names: tuple[str, ...]) -> None:
    """Write the checkpoints, from a pattern of random numbers, without a GPU."""
    torch.set_num_threads(8)
    for name in names:
        if name in IN_FP8:
            formats.write_checkpoint(name, folder / name)
            (folder / name / "done").touch()
            continue
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                make_cut_config(name, pad_token_id=0), dtype=torch.bfloat16
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
        with formats.offer_kernels(case.kernels):
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
        case.path, dtype="auto" if case.kernels else torch.bfloat16, **wishes
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
        ids = torch.randint(
            3, 32000, (rows, num_prompt_tokens), generator=torch.Generator().manual_seed(0)
        ).to(f"cuda:{devices[0]}")
        # Kernels for fp8 are tuned in their first run, which takes memory.
        for _ in range(2 if case.kernels else 1):
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
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
