"""Measure steps of training of published geometries on a GPU, and compare the estimates with it.

    python -m benchmarks.memory.training measure training.jsonl [MODEL ...]    # on a GPU
    python -m benchmarks.memory.training compare benchmarks/memory/measured/training_h200.jsonl  # anywhere

Models are cut to their first layers and have random weights. Each line of the file is the third of
three steps, with what torch showed: by then the optimizer's states exist. All cases run in one
process, which gives everything back to the driver in between.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.memory.accuracy import prepare_case

# For each model, the layers that are left.
MODELS = {
    "olmoe-1b-7b": 8,
    "qwen3-30b-a3b": 4,
    "mixtral-8x7b": 1,
    "deepseek-v2-lite": 4,
    "gpt-oss-20b": 2,
}
SIZES = ((4, 1024), (1, 2048), (8, 512))
WAYS: tuple[Mapping[str, Any], ...] = (
    {},
    {"has_checkpointing": True},
    {"frozen": "experts"},
    {"frozen": "router"},
)
NUM_STEPS = 3


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--events", type=Path, help="a folder for the sizes of all allocations")
    arguments = parser.parse_args()
    only = arguments.models or list(MODELS)
    if arguments.action == "measure":
        measure(arguments.file, only, events=arguments.events)
    else:
        compare(arguments.file, only)


def list_cases() -> list[dict[str, Any]]:
    """Return the options of each model's cases, the most important one first."""
    by_way = [{"sizes": SIZES[0], **way} for way in WAYS]
    return by_way + [{"sizes": sizes} for sizes in SIZES[1:]]


def measure(file: Path, models: list[str], *, events: Path | None) -> None:
    """Append what each case took to a file; a case that fails is left out."""
    cases = [(model, options) for model in models for options in list_cases()]
    # The first case of every model comes first.
    cases.sort(key=lambda case: list_cases().index(case[1]) > 0)
    for model, options in cases:
        start = time.perf_counter()
        try:
            line, sizes = measure_case(model, options)
        except Exception as error:  # noqa: BLE001  (a case must not end the others)
            print(f"{model} {options}: {type(error).__name__}: {error}", flush=True)
            continue
        print(json.dumps(line), f"({time.perf_counter() - start:.1f} s)", flush=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if events is not None:
            events.mkdir(parents=True, exist_ok=True)
            words = "-".join([model, *map(str, options["sizes"]), *map(str, options)][:8])
            path = events / f"{words}.json.z"
            path.write_bytes(zlib.compress(json.dumps(sizes).encode(), 9))


def measure_case(model: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return the figures of a case, and the allocations of its last step in order."""
    import torch
    import transformers

    release()
    held_before_bytes = torch.cuda.memory_allocated()
    (batch_size, num_tokens) = options["sizes"]
    builder, scenario = prepare_case(
        model,
        {
            "num_layers": MODELS[model],
            "task": "forward",
            "batch_size": batch_size,
            "num_prompt_tokens": num_tokens,
        },
    )
    skeleton = builder.build(scenario, device="cuda")
    freeze(skeleton, options.get("frozen"))
    release()
    weights_bytes = torch.cuda.memory_allocated() - held_before_bytes
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (batch_size, num_tokens), generator=generator).cuda()
    skeleton.train()
    if options.get("has_checkpointing"):
        skeleton.gradient_checkpointing_enable()
    trained = [each for each in skeleton.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    peaks: list[int] = []
    sizes: list[Any] = []
    seconds = 0.0
    for number in range(NUM_STEPS):
        torch.cuda.reset_peak_memory_stats()
        is_last = number == NUM_STEPS - 1
        start = time.perf_counter()
        with recording(sizes) if is_last else contextlib.nullcontext():
            loss = skeleton(input_ids=ids, labels=ids, use_cache=False).loss
            after_forward = torch.cuda.memory_allocated()
            loss.backward()
            after_backward = torch.cuda.memory_allocated()
            before_optimizer = torch.cuda.max_memory_allocated()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peaks.append(torch.cuda.max_memory_allocated())
    line = {
        "model": model,
        "num_layers": MODELS[model],
        "options": dict(options),
        "gpu": torch.cuda.get_device_name(),
        "held_before_bytes": held_before_bytes,
        "weights_bytes": weights_bytes,
        "trained_bytes": sum(each.numel() * each.element_size() for each in trained),
        "peaks_allocated_bytes": peaks,
        "peak_allocated_bytes": peaks[-1],
        "peak_before_optimizer_bytes": before_optimizer,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "allocated_after_forward_bytes": after_forward,
        "allocated_after_backward_bytes": after_backward,
        "allocated_after_step_bytes": torch.cuda.memory_allocated(),
        "seconds": round(seconds, 3),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return line, sizes


def freeze(model: Any, frozen: str | None) -> None:
    """Let every parameter be trained except those of a component."""
    from moetool.anatomy.components import Component
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton

    component = {"experts": Component.ROUTED_EXPERTS, "router": Component.ROUTER}.get(frozen or "")
    placement = RoutedSkeleton.of(model).placement
    for path, parameter in model.named_parameters():
        is_frozen = component is not None and placement.place(path).component is component
        parameter.requires_grad_(parameter.is_floating_point() and not is_frozen)


def compare(file: Path, models: list[str]) -> None:
    """Print how far the estimate of each line of a file is from what was measured."""
    for line in map(json.loads, file.read_text().splitlines()):
        if line["model"] in models:
            found = simulate_line(line)
            off = [
                getattr(found, name) / line[name] - 1
                for name in ("peak_allocated_bytes", "peak_reserved_bytes")
            ]
            print(
                line["model"], line["options"], "allocated {:+.4%}, reserved {:+.3%}".format(*off)
            )


def simulate_line(line: Mapping[str, Any]) -> Any:
    """Return the profile of the step that a line of the file describes."""
    from benchmarks.memory.accuracy import build_as_measured
    from moetool.catalogue.gpus import find_gpu
    from moetool.memory.gpu_overhead import find_workspace_bytes
    from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
    from moetool.simulation.memory.memory_replay import list_weight_bytes
    from moetool.simulation.training.training_replay import replay_training
    from moetool.simulation.training.training_run import TrainingOptions, run_training

    options = line["options"]
    batch_size, num_tokens = options["sizes"]
    builder, scenario = prepare_case(
        line["model"], {"num_layers": line["num_layers"], "task": "forward"}
    )
    skeleton = build_as_measured(builder, scenario, transformers=line["transformers"])
    freeze(skeleton, options.get("frozen"))
    timeline = run_training(
        skeleton,
        TrainingOptions(
            batch_size,
            num_tokens,
            has_checkpointing=options.get("has_checkpointing", False),
            workspace_bytes=find_workspace_bytes(find_gpu("h200")),
            lt_workspace_bytes=LT_WORKSPACE_BYTES,
        ),
    )
    return replay_training(timeline, weight_bytes=list_weight_bytes(skeleton))


@contextlib.contextmanager
def recording(sizes: list[Any]) -> Iterator[None]:
    """Append the size of each allocation, and minus the size of each free, in order."""
    import torch

    memory: Any = torch.cuda.memory
    memory._record_memory_history(enabled="all", context=None, max_entries=400_000)
    try:
        yield
    finally:
        (trace, *_) = memory._snapshot()["device_traces"]
        memory._record_memory_history(enabled=None)
        signs = {"alloc": 1, "free_completed": -1}
        sizes += [signs[each["action"]] * each["size"] for each in trace if each["action"] in signs]


def release() -> None:
    """Give everything that nothing holds back to the driver."""
    import torch

    gc.collect()
    clear: Any = torch._C._cuda_clearCublasWorkspaces
    clear()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
