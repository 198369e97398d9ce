"""Measure the memory of each of two GPUs that share a model.

    python -m benchmarks.memory.several_gpus

Each way of sharing runs in separate processes, forked after the imports, because a model that was
deleted may leave some of its weights behind. A line of JSON is printed for each rank and scenario.
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
from pathlib import Path
from typing import Any

import torch
import transformers

NUM_GPUS = 2
ORDER = ("Qwen3-30B-A3B, 4 layers", "DeepSeek-V2-Lite, 4 layers", "Mixtral-8x7B, 2 layers")
WAYS = ("tensor", "expert", "device-map", "data")
# Sequences, prompt tokens, new tokens; no new tokens for one call with all logits.
SCENARIOS = ((4, 1024, 8), (2, 512, 0), (16, 128, 24))
CASE_TIMEOUT_S, WHOLE_S = 45, 97


def main() -> None:
    """Measure every way of sharing each model."""
    # Otherwise a look for GPUs would keep forked processes from using them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    began = time.perf_counter()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    context = mp.get_context("fork")
    builder = context.Process(target=build_all, args=(folder,))
    builder.start()
    try:
        for name in ORDER:
            path = folder / name.split(",")[0]
            while builder.is_alive() and not (path / "done").exists():
                time.sleep(0.1)
            for way in WAYS if name == ORDER[0] else WAYS[:3]:
                left = WHOLE_S - (time.perf_counter() - began)
                if left < 8:
                    print(f"(no time left for {way} of {name})", flush=True)
                    continue
                run_case(context, name, path, way, timeout_s=min(CASE_TIMEOUT_S, left))
            shutil.rmtree(path, ignore_errors=True)
    finally:
        builder.kill()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)


def build_all(folder: Path) -> None:
    """Write the checkpoints, from a pattern of random numbers, without a GPU."""
    from benchmarks.tracing.parallel_on_gpus import GEOMETRIES

    torch.set_num_threads(8)
    for name in ORDER:
        model_type, values = GEOMETRIES[name]
        make_config: Any = transformers.CONFIG_MAPPING[model_type]
        config = make_config(**values, max_position_embeddings=4096, pad_token_id=0)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.to_empty(device="cpu")
        pattern = torch.randn(2**22).mul_(0.02).to(torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                for piece in parameter.view(-1).split(pattern.numel()):
                    piece.copy_(pattern[: piece.numel()])
        model.save_pretrained(folder / name.split(",")[0])
        (folder / name.split(",")[0] / "done").touch()
        del model


def run_case(context: Any, name: str, path: Path, way: str, *, timeout_s: float) -> None:
    """Run one way of sharing in separate processes, and end those that take too long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    num = NUM_GPUS if way in ("tensor", "expert") else 1
    began = time.perf_counter()
    processes = [
        context.Process(target=work, args=(name, path, way, rank, port)) for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(timeout_s - (time.perf_counter() - began), 0))
    for process in processes:
        if process.is_alive():
            print(f"(ended {way} of {name} after {timeout_s:.0f} s)", flush=True)
            process.kill()
            process.join()


def work(name: str, path: Path, way: str, rank: int, port: int) -> None:
    """Measure in one process."""
    try:
        measure(name, path, way, rank, port)
    except BaseException:
        print(f"(failed: {way} of {name}, rank {rank})\n{traceback.format_exc()}", flush=True)
        raise
    finally:
        sys.stdout.flush()
        os._exit(0)


def measure(name: str, path: Path, way: str, rank: int, port: int) -> None:
    """Load a model and print the memory of its scenarios."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    devices = range(NUM_GPUS) if way == "device-map" else (rank,)
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
            "WORLD_SIZE": str(NUM_GPUS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        from transformers.distributed.configuration_utils import DistributedConfig

        size: dict[str, Any] = {"tp_size": NUM_GPUS, "tp_plan": "auto"}
        if way == "expert":
            size = {"tp_size": NUM_GPUS, "ep_size": NUM_GPUS}
        wishes = {"distributed_config": DistributedConfig(**size)}
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **wishes)
    model.eval()
    # Every sequence runs to its end.
    model.generation_config.eos_token_id = None
    synchronize(devices)
    loading_s = time.perf_counter() - began
    used["loaded"] = [count_used(device) for device in devices]
    weights = [torch.cuda.memory_allocated(device) for device in devices]
    largest = [loading_peak(device) for device in devices]
    for batch_size, num_prompt_tokens, num_new_tokens in SCENARIOS:
        rows = batch_size // NUM_GPUS if way == "data" else batch_size
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
                "geometry": name,
                "way": way,
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
            }
            if way == "device-map" and batch_size == SCENARIOS[0][0] and not place:
                device_map: dict[str, Any] = vars(model)["hf_device_map"]
                line["map"] = {key: str(value) for key, value in device_map.items()}
            print(json.dumps(line), flush=True)


def count_used(device: int) -> int:
    """Return the bytes in use on a device, by all processes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def loading_peak(device: int) -> int:
    """Return the most bytes allocated so far."""
    return torch.cuda.max_memory_allocated(device)


def synchronize(devices: Any) -> None:
    """Wait for all devices."""
    for device in devices:
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
