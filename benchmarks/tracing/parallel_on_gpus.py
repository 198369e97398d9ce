"""Compare the routing of a model on one GPU with that of the same model shared by two, and time both.

    python -m benchmarks.tracing.parallel_on_gpus [GEOMETRY ...]

Published geometries with random weights, cut to a few layers. Each is loaded on one GPU, and then by
two processes under transformers' tensor and expert plans, and records the same batches. Shared sums
round differently, so single decisions differ. They are counted, and so are those that differ on one
GPU if the batches are half as large, which is rounding as well. A tie is a decision in which the
scores of the experts that one of the runs chose alone are apart by at most one unit of rounding of
the token's largest score; the largest distance is given in these units.

In float32 sums over halves differ in their last bits only, and no decision should differ.

The last line is the whole command, `torchrun … -m moetool route-trace … --parallel expert`. Without
GPUs, tiny models run on the CPU, which shows no more than that this script works.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from moetool import RoutingRecorder
from moetool.catalogue.names import demo_folder
from moetool.errors import UntraceableError
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.tracing.parallel.agreement import Agreement
from moetool.tracing.parallel.loading import make_distributed_config
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.processes.processes import find_processes
from moetool.tracing.recording.calls import RecordedCall
from moetool.tracing.recording.transfer.inbox import Receipt

NUM_GPUS = 2
GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-30B-A3B, 4 layers": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 32000,
        },
    ),
    "Mixtral-8x7B, 2 layers": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
        },
    ),
    "DeepSeek-V2-Lite, 4 layers": (
        "deepseek_v2",
        {
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "vocab_size": 32000,
        },
    ),
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
# Rows, tokens of a row, batches. In float32 experts run one after the other.
SIZES = {
    torch.bfloat16: (8, 1024 if HAS_GPU else 64, 4),
    torch.float32: (4, 256 if HAS_GPU else 64, 1),
}
# The whole run has to end in time, whatever happens to its processes.
WORKER_TIMEOUT_S, COMMAND_TIMEOUT_S = 180, 50


def main() -> None:
    """Measure the geometries whose names contain a word of the command line, or all."""
    if "RANK" in os.environ:
        work(Path(sys.argv[1]), sys.argv[2:])
        return
    card = torch.cuda.get_device_name() if HAS_GPU else "processes on the CPU"
    print(
        f"{NUM_GPUS} x {card}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}\n",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    names = [
        name for name in GEOMETRIES if not sys.argv[1:] or any(w in name for w in sys.argv[1:])
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(NUM_GPUS), "-m"]
    try:
        run(
            [*launch, "benchmarks.tracing.parallel_on_gpus", folder, *names],
            timeout_s=WORKER_TIMEOUT_S,
        )
        whole_command(launch, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(command: Sequence[object], *, timeout_s: float) -> None:
    """Run a command, and say how it ended if it failed."""
    try:
        code = subprocess.run([str(word) for word in command], timeout=timeout_s).returncode
    except subprocess.TimeoutExpired:
        print(f"(ended after {timeout_s} s)", flush=True)
        return
    if code:
        print(f"(ended with exit code {code})", flush=True)


def whole_command(launch: Sequence[str], folder: Path) -> None:
    """Run the command on the last checkpoint, and say what it wrote."""
    model = next(iter(folder.glob("*/config.json")), None)
    if model is None:
        return
    prompts, target = folder / "prompts.jsonl", folder / "trace.parquet"
    text = " ".join(p.read_text() for p in sorted(Path("sample_prompts").rglob("*.txt")))
    words = (text or "The cat sat on the mat. ").split()
    with prompts.open("w") as lines:
        for index in range(64):
            chosen = [words[(index * 97 + place) % len(words)] for place in range(200)]
            lines.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    began = time.perf_counter()
    command = [*launch, "moetool", "route-trace", model.parent, "--prompts", prompts]
    command += ["--parallel", "expert", "--batch-size", "16", "--max-new-tokens", "4", "-v"]
    print(f"\nmoetool route-trace {model.parent.name} --parallel expert:", flush=True)
    run([*command, "-o", target], timeout_s=COMMAND_TIMEOUT_S)
    if target.exists():
        from moetool.trace.reading.reader import open_trace

        metadata = open_trace(target).metadata
        assert metadata is not None
        print(
            f"{metadata.num_decisions:,} decisions, {metadata.parallel} x {metadata.parallel_size}, "
            f"{time.perf_counter() - began:.0f} s"
        )


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
            build(name, checkpoint)
        torch.distributed.barrier()
        for dtype in SIZES:
            measure(name, checkpoint, dtype, rank=rank, processes=processes)
        if rank == 0 and name != names[-1]:
            shutil.rmtree(checkpoint)
    processes.close()
    torch.distributed.destroy_process_group()


def build(name: str, folder: Path) -> None:
    """Write a checkpoint of random weights with the demonstration model's tokenizer."""
    model_type, values = GEOMETRIES[name]
    make_config: Any = transformers.CONFIG_MAPPING[model_type]
    config = make_config(
        **{**values, **({} if HAS_GPU else TINY)},
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in demo_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    del model
    free()


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
                receipt = Receipt()
                receipt.set_result(shared.calls)
                agreement.add([receipt])
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
        num, num_ties, largest, total = compare(against, measured, dtype)
        differing = [f"{num:,} of {total:,}", f"{num_ties:,}", f"{largest:.1f}"]
    weights = f"{measured.weights_bytes / 1e9:.2f}"
    weights += "" if expected is None else f" ({expected / 1e9:.2f})"
    cells = [name, str(dtype).removeprefix("torch."), title]
    cells += [f"{num_tokens / measured.seconds:,.0f}", *differing, agrees, weights]
    print(f"| {' | '.join(cells)} | {measured.loading_s:.1f} |", flush=True)


def compare(one: Measured, other: Measured, dtype: torch.dtype) -> tuple[int, int, float, int]:
    """Return how many decisions differ, how many of these are ties, the largest distance, and all."""
    num = num_ties = total = 0
    largest = 0.0
    for first, second in zip(gather(one), gather(other), strict=True):
        ids, scores = first
        num_experts = scores.shape[1]
        chosen, also = mask(ids, num_experts), mask(second[0], num_experts)
        differ = (chosen != also).any(axis=1)
        total += len(ids)
        num += int(differ.sum())
        if not differ.any():
            continue
        scores, left, came = scores[differ], (chosen & ~also)[differ], (also & ~chosen)[differ]
        most = np.where(left, scores, -np.inf).max(axis=1)
        least = np.where(came, scores, np.inf).min(axis=1)
        unit = torch.finfo(dtype).eps * np.abs(scores).max(axis=1)
        distance = (most - least) / unit
        num_ties += int((distance <= 1).sum())
        largest = max(largest, float(distance.max()))
    return num, num_ties, largest, total


def gather(measured: Measured) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the ids and scores of all tokens, by layer."""
    layers = zip(*(call.layers for call in measured.calls), strict=True)
    return [
        (
            np.concatenate([layer.experts for layer in calls]),
            np.concatenate([layer.scores for layer in calls]),
        )
        for calls in layers
    ]


def mask(ids: NDArray[Any], num_experts: int) -> NDArray[np.bool_]:
    """Return which experts were chosen, one row for each token."""
    chosen = np.zeros((len(ids), num_experts), dtype=bool)
    np.put_along_axis(chosen, ids.astype(np.int64), True, axis=1)
    return chosen


def free() -> None:
    """Give the memory of models that are no longer used back to the GPU."""
    gc.collect()
    if HAS_GPU:
        torch.cuda.empty_cache()


def wait() -> None:
    """Wait for the GPU."""
    if HAS_GPU:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
