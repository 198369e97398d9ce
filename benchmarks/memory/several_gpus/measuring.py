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
from benchmarks.memory.several_gpus.cases import (
    IN_FP8,
    Case,
    count_sequences,
    list_cases,
    list_scenarios,
    make_config,
)

CASE_TIMEOUT_S = 60
# Kernels for fp8 are compiled on the machine.
CASE_IN_FP8_TIMEOUT_S = 120
_LEAST_S = 8
_SHARED = ("tensor", "expert")


@dataclass(frozen=True)
class Wishes:
    """Options of a measurement.

    Attributes:
        file: Gets the figures.
        whole_s: The time for all of them.
        kernels: The sources of kernels for fp8, to measure checkpoints in fp8.
        num_ranks: Ranks that run without each other, on any number of GPUs. None if GPUs share
            models.
        words: Only geometries whose names contain one of them.
    """

    file: Path
    whole_s: float
    kernels: Path | None = None
    num_ranks: int | None = None
    words: tuple[str, ...] = ()

    def choose_cases(self) -> list[Case]:
        """Return the cases for this machine."""
        cases = list_cases(
            self.num_ranks or torch.cuda.device_count(), is_in_fp8=self.kernels is not None
        )
        if self.num_ranks is not None:
            cases = [
                case._replace(num_gpus=self.num_ranks)
                for case in cases
                if case.way in _SHARED and case.num_gpus == max(each.num_gpus for each in cases)
            ]
        return [
            case
            for case in cases
            if not self.words or any(word in case.geometry for word in self.words)
        ]


@dataclass(frozen=True)
class Place:
    """One of the processes of a case.

    Attributes:
        rank: Its number.
        num: The number of processes.
        port: The port of the first.
        path: The checkpoint.
    """

    rank: int
    num: int
    port: int
    path: Path


def measure_all(wishes: Wishes) -> None:
    """Measure every case."""
    # Otherwise a look for GPUs would keep forked processes from using them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    began = time.perf_counter()
    print(
        f"{torch.cuda.device_count()} GPUs, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    cases = wishes.choose_cases()
    last = {case.geometry: case for case in cases}
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    context = mp.get_context("fork")
    builder = context.Process(target=build_all, args=(folder, tuple(last)))
    builder.start()
    try:
        for case in cases:
            path = folder / case.geometry
            while builder.is_alive() and not (path / "done").exists():
                time.sleep(0.1)
            left = wishes.whole_s - (time.perf_counter() - began)
            if left < _LEAST_S:
                print(f"(no time left for {case.describe()})", flush=True)
                continue
            timeout_s = CASE_IN_FP8_TIMEOUT_S if wishes.kernels else CASE_TIMEOUT_S
            run_case(context, case, path, wishes, timeout_s=min(timeout_s, left))
            if last[case.geometry] is case:
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


def run_case(context: Any, case: Case, path: Path, wishes: Wishes, *, timeout_s: float) -> None:
    """Run one way of sharing in separate processes, and end those that take too long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    num = 1 if case.way == "device-map" else case.num_gpus
    began = time.perf_counter()
    processes = [
        context.Process(target=work, args=(case, Place(rank, num, port, path), wishes))
        for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(timeout_s - (time.perf_counter() - began), 0))
    for process in processes:
        if process.is_alive():
            print(f"(ended {case.describe()} after {timeout_s:.0f} s)", flush=True)
            process.kill()
            process.join()
    print(f"{case.describe()}: {time.perf_counter() - began:.1f} s", flush=True)


def work(case: Case, place: Place, wishes: Wishes) -> None:
    """Measure in one process, and write down its figures or its error."""
    try:
        with formats.offer_kernels(wishes.kernels):
            measure(case, place, wishes)
    except BaseException as error:
        print(
            f"(failed: {case.describe()}, rank {place.rank})\n{traceback.format_exc()}", flush=True
        )
        words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        write(wishes.file, case._asdict() | {"rank": place.rank, "error": words})
        raise
    finally:
        sys.stdout.flush()
        os._exit(0)


def measure(case: Case, place: Place, wishes: Wishes) -> None:
    """Load a model and write down the memory of its scenarios."""
    way, num_gpus = case.way, case.num_gpus
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # A process that runs alone has the first of the GPUs that it sees.
    visible = range(num_gpus)
    if wishes.num_ranks:
        visible = range(place.rank % torch.cuda.device_count(), torch.cuda.device_count())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(device) for device in visible)
    devices = choose_devices(case, place, wishes)
    start(devices)
    used = {"context": [count_used(device) for device in devices]}
    load_as: dict[str, Any] = {"device_map": {"": devices[0]}}
    if way == "device-map":
        load_as = {"device_map": "auto"}
    if way in _SHARED:
        load_as = {"distributed_config": join_processes(case, place, devices[0], wishes)}
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place.path, dtype="auto" if wishes.kernels else torch.bfloat16, **load_as
    )
    model.eval()
    # Every sequence runs to its end.
    model.generation_config.eos_token_id = None
    synchronize(devices)
    loading_s = time.perf_counter() - began
    used["loaded"] = [count_used(device) for device in devices]
    weights = [torch.cuda.memory_allocated(device) for device in devices]
    largest = [torch.cuda.max_memory_allocated(device) for device in devices]
    for number, (batch_size, num_prompt_tokens, num_new_tokens) in enumerate(list_scenarios(case)):
        rows = count_sequences(way, batch_size, num_gpus=num_gpus)[place.rank]
        ids = torch.randint(
            3, 32000, (rows, num_prompt_tokens), generator=torch.Generator().manual_seed(0)
        ).to(f"cuda:{devices[0]}")
        # Kernels for fp8 are tuned in their first run, which takes memory.
        for _ in range(2 if wishes.kernels else 1):
            forget_peaks(devices)
            with torch.inference_mode():
                if num_new_tokens:
                    model.generate(ids, max_new_tokens=num_new_tokens, disable_compile=True)
                else:
                    model(ids)
        synchronize(devices)
        for index, device in enumerate(devices):
            line = case._asdict() | {
                "rank": device if way == "device-map" else place.rank,
                "batch_size": batch_size,
                "num_prompt_tokens": num_prompt_tokens,
                "num_new_tokens": num_new_tokens,
                "weights_bytes": weights[index],
                "loading_peak_bytes": largest[index],
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
                "reserved_bytes": torch.cuda.memory_reserved(device),
            }
            if wishes.num_ranks:
                line["is_alone"] = True
            else:
                # Ranks that run alone may share a GPU.
                line |= {
                    "used_with_context_bytes": used["context"][index],
                    "used_after_loading_bytes": used["loaded"][index],
                    "used_bytes": count_used(device),
                    "loading_s": round(loading_s, 1),
                }
            line |= {
                "card": torch.cuda.get_device_name(device),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            if way == "device-map" and not number and not index:
                device_map: dict[str, Any] = vars(model)["hf_device_map"]
                line["map"] = {key: str(value) for key, value in device_map.items()}
            write(wishes.file, line)


def choose_devices(case: Case, place: Place, wishes: Wishes) -> list[int]:
    """Return the GPUs of a process, among those that it sees."""
    if case.way == "device-map":
        return list(range(case.num_gpus))
    return [0 if wishes.num_ranks else place.rank]


def join_processes(case: Case, place: Place, device: int, wishes: Wishes) -> Any:
    """Return how processes share a model, once this one is known as one of them.

    A rank that runs alone gets torch's fake group, whose collectives move nothing.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(device),
        "WORLD_SIZE": str(place.num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(place.port),
    }
    if wishes.num_ranks:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group(
            "fake", store=FakeStore(), rank=place.rank, world_size=place.num
        )
    if case.way == "expert":
        return DistributedConfig(tp_size=case.num_gpus, ep_size=case.num_gpus)
    return DistributedConfig(tp_size=case.num_gpus, tp_plan="auto")


def write(file: Path, line: dict[str, Any]) -> None:
    """Add a line to a file that several processes write to, each a whole line at once."""
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def start(devices: list[int]) -> None:
    """Make a context on each device."""
    for device in devices:
        torch.cuda.set_device(device)
        torch.ones(1, device=f"cuda:{device}")
        torch.cuda.synchronize()
    torch.cuda.set_device(devices[0])


def forget_peaks(devices: list[int]) -> None:
    """Release what the allocators hold in reserve, and measure peaks from now on."""
    for device in devices:
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def count_used(device: int) -> int:
    """Return the bytes in use on a device, by all processes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def synchronize(devices: list[int]) -> None:
    """Wait for all devices."""
    for device in devices:
        torch.cuda.synchronize(device)
