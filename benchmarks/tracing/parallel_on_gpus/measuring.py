"""Run a checkpoint in each way, in one of the processes, and print what it took."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.tracing.parallel_on_gpus.checkpoints import write_checkpoint
from benchmarks.tracing.parallel_on_gpus.devices import DEVICE, HAS_GPU, NUM_GPUS, free, wait
from benchmarks.tracing.parallel_on_gpus.differences import count_differences
from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.parallel.loading import make_distributed_config
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.processes.processes import find_processes
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.transfer.inbox import make_receipt

# Rows, tokens of a row, batches. In float32 experts run one after the other.
SIZES = {
    torch.bfloat16: (8, 1024 if HAS_GPU else 64, 4),
    torch.float32: (4, 256 if HAS_GPU else 64, 1),
}


@dataclass(frozen=True)
class Measured:
    """The record of one way of running a model, and its cost.

    Attributes:
        calls: Recorded, in order.
        seconds: For all of them.
        weights_bytes: Of this process's GPU.
        loading_s: Seconds.
    """

    calls: list[RecordedCall]
    seconds: float
    weights_bytes: int
    loading_s: float


def work(folder: Path, names: Sequence[str]) -> None:
    """Measure in one of the processes; the first one prints."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rank = int(os.environ["RANK"])
    if HAS_GPU:
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")
    processes = find_processes()
    if rank == 0:
        print(
            "| geometry | dtype | run | tokens/s | decisions that differ | of these, ties | "
            "largest distance | processes agree | weights on GPU 0, GB (expected) | loading, s |"
        )
        print("|---|---|---|---:|---:|---:|---:|---|---:|---:|", flush=True)
    for name in names:
        checkpoint = folder / name.split(",")[0]
        if rank == 0:
            write_checkpoint(name, checkpoint)
        torch.distributed.barrier()
        for dtype in SIZES:
            measure(name, checkpoint, dtype, rank=rank, processes=processes)
        if rank == 0 and name != names[-1]:
            shutil.rmtree(checkpoint)
    processes.close()
    torch.distributed.destroy_process_group()


def measure(name: str, folder: Path, dtype: torch.dtype, *, rank: int, processes: Any) -> None:
    """Print a line for each way of running a checkpoint."""
    one, small = None, None
    if rank == 0:
        model, loading_s = load(folder, dtype, {"device_map": {"": 0 if HAS_GPU else "cpu"}})
        one = record(model, dtype, loading_s)
        small = record(model, dtype, loading_s, split=2)
        del model
        free()
        assert one is not None
        show(name, dtype, "one GPU", one)
        show(name, dtype, "one GPU, half batches", small, against=one)
    torch.distributed.barrier()
    for plan in ParallelPlan:
        config = make_distributed_config(plan, number=NUM_GPUS)
        model, loading_s = load(folder, dtype, {"distributed_config": config})
        shared = record(model, dtype, loading_s)
        expected = expect(model.config, dtype, plan)
        del model
        free()
        agrees = "yes"
        try:
            with Agreement(processes) as agreement:
                agreement.add([make_receipt(shared.calls)])
                agreement.compare().result()
        except UntraceableError:
            agrees = "no"
        if rank == 0:
            show(name, dtype, f"{plan} x {NUM_GPUS}", shared, one, agrees=agrees, expected=expected)


def load(folder: Path, dtype: torch.dtype, wishes: dict[str, Any]) -> tuple[Any, float]:
    """Return a model, and the seconds that it took to load."""
    began = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **wishes)
    wait()
    return model.eval(), time.perf_counter() - began


def record(model: Any, dtype: torch.dtype, loading_s: float, *, split: int = 1) -> Measured:
    """Return what is recorded of the batches, each in some parts, and the time of it."""
    num_rows, num_columns, num_batches = SIZES[dtype]
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(3, model.config.vocab_size, (num_rows, num_columns), generator=generator)
        for _ in range(num_batches)
    ]
    parts = [part.to(DEVICE) for batch in batches for part in batch.chunk(split)]
    weights_bytes = torch.cuda.memory_allocated() if HAS_GPU else 0
    with torch.inference_mode():
        with RoutingRecorder(model, keep_scores=True):
            model(input_ids=parts[0], use_cache=False, logits_to_keep=1)
        wait()
        began = time.perf_counter()
        with RoutingRecorder(model, keep_scores=True) as recorder:
            for part in parts:
                model(input_ids=part, use_cache=False, logits_to_keep=1)
            wait()
        seconds = time.perf_counter() - began
    return Measured(recorder.take_calls(), seconds, weights_bytes, loading_s)


def expect(config: Any, dtype: torch.dtype, plan: ParallelPlan) -> int:
    """Return the bytes of weights on the first GPU that `memory-estimate` states."""
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(
            type(config).from_dict(config.to_diff_dict()), dtype=dtype
        )
    share = {
        ParallelPlan.TENSOR: share_by_tensor_parallel,
        ParallelPlan.EXPERT: share_by_expert_parallel,
    }[plan]
    return share(skeleton, num_gpus=NUM_GPUS).weights_bytes[0]


def show(
    name: str,
    dtype: torch.dtype,
    title: str,
    measured: Measured,
    against: Measured | None = None,
    *,
    agrees: str = "",
    expected: int | None = None,
) -> None:
    """Print one line of the table."""
    num_tokens = sum(len(call.position) for call in measured.calls)
    differing = ["", "", ""]
    if against is not None:
        num, num_ties, largest, total = count_differences(against.calls, measured.calls, dtype)
        differing = [f"{num:,} of {total:,}", f"{num_ties:,}", f"{largest:.1f}"]
    weights = f"{measured.weights_bytes / 1e9:.2f}"
    weights += "" if expected is None else f" ({expected / 1e9:.2f})"
    cells = [name, str(dtype).removeprefix("torch."), title]
    cells += [f"{num_tokens / measured.seconds:,.0f}", *differing, agrees, weights]
    print(f"| {' | '.join(cells)} | {measured.loading_s:.1f} |", flush=True)
