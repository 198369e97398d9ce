"""Measure steps of training of published geometries on a GPU, and compare the estimates with it.

    python -m benchmarks.memory.training measure training.jsonl --session adapters    # on a GPU
    python -m benchmarks.memory.training compare benchmarks/memory/measured/training_h200.jsonl

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory.accuracy import prepare_case

# By session, the layers that are left of each model.
MODELS: Mapping[str, Mapping[str, int]] = {
    "first": {
        "olmoe-1b-7b": 8,
        "qwen3-30b-a3b": 4,
        "mixtral-8x7b": 1,
        "deepseek-v2-lite": 4,
        "gpt-oss-20b": 2,
    },
    "second": {
        "qwen1.5-moe-a2.7b": 4,
        "phi-3.5-moe": 2,
        "glm-4.5-air": 3,
        "olmoe-1b-7b": 5,
        "mixtral-8x7b": 2,
        "granite-3.0-3b-a800m": 8,
        "ernie-4.5-21b-a3b": 4,
    },
    "adapters": {"olmoe-1b-7b": 8, "mixtral-8x7b": 2, "qwen3-30b-a3b": 4},
}
SIZES = {
    "first": ((4, 1024), (1, 2048), (8, 512)),
    "second": ((2, 2048), (3, 640), (1, 4096)),
    "adapters": ((4, 1024), (1, 2048)),
}
_ADAPTERS = {"lora_rank": 16}
WAYS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "adapters": (
        _ADAPTERS,
        {**_ADAPTERS, "has_checkpointing": True},
        {**_ADAPTERS, "lora_targets": ["q_proj", "v_proj"]},
        {"optimizer": "adamw-8bit"},
        {**_ADAPTERS, "optimizer": "adamw-8bit"},
    )
}
OTHER_WAYS: tuple[Mapping[str, Any], ...] = (
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
    parser.add_argument("--session", choices=tuple(MODELS), default="first")
    parser.add_argument("--events", type=Path, help="a folder for the sizes of all allocations")
    arguments = parser.parse_args()
    if arguments.action == "measure":
        measure(
            arguments.file, arguments.models, session=arguments.session, events=arguments.events
        )
    else:
        compare(arguments.file, arguments.models)


def list_cases(session: str) -> list[dict[str, Any]]:
    """Return the options of each model's cases, the most important one first."""
    ways = WAYS.get(session, OTHER_WAYS)
    first, *others = SIZES[session]
    by_way = [{"sizes": first, **way} for way in ways]
    return by_way + [{"sizes": sizes, **ways[0]} for sizes in others]


def measure(file: Path, models: Sequence[str], *, session: str, events: Path | None) -> None:
    """Append what each case took to a file; a case that fails is left out."""
    listed = list_cases(session)
    cases = [(model, options) for model in models or MODELS[session] for options in listed]
    # The first case of every model comes first.
    cases.sort(key=lambda case: listed.index(case[1]) > 0)
    for model, options in cases:
        start = time.perf_counter()
        try:
            line, sizes = measure_case(model, MODELS[session][model], options)
        except Exception as error:  # noqa: BLE001  (a case must not end the others)
            print(f"{model} {options}: {type(error).__name__}: {error}", flush=True)
            continue
        print(json.dumps(line), f"({time.perf_counter() - start:.1f} s)", flush=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if events is not None:
            events.mkdir(parents=True, exist_ok=True)
            words = [f"{name}={value}" for name, value in options.items()]
            path = events / f"{'-'.join([model, *words]).replace(' ', '')}.json.z"
            path.write_bytes(zlib.compress(json.dumps(sizes).encode(), 9))


def measure_case(
    model: str, num_layers: int, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """Return the figures of a case, and the allocations of its last step in order."""
    import torch
    import transformers

    release()
    held_before_bytes = torch.cuda.memory_allocated()
    (batch_size, num_tokens) = options["sizes"]
    builder, scenario = prepare_case(
        model,
        {
            "num_layers": num_layers,
            "task": "forward",
            "batch_size": batch_size,
            "num_prompt_tokens": num_tokens,
        },
    )
    skeleton = builder.build(scenario, device="cuda")
    freeze(skeleton, options.get("frozen"))
    if "lora_rank" in options:
        add_pefts_adapters(skeleton, options)
    release()
    weights_bytes = torch.cuda.memory_allocated() - held_before_bytes
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (batch_size, num_tokens), generator=generator).cuda()
    skeleton.train()
    if options.get("has_checkpointing"):
        skeleton.gradient_checkpointing_enable()
    trained = [each for each in skeleton.parameters() if each.requires_grad]
    optimizer = make_optimizer(options, trained)
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
        "num_layers": num_layers,
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


def make_optimizer(options: Mapping[str, Any], trained: Sequence[Any]) -> Any:
    """Return the real optimizer of a case."""
    import torch

    if options.get("optimizer") != "adamw-8bit":
        return torch.optim.AdamW(trained, lr=1e-5)
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(trained, lr=1e-5)


def add_pefts_adapters(model: Any, options: Mapping[str, Any]) -> None:
    """Let PEFT put its adapters into a model, and freeze the rest."""
    import peft

    targets = options.get("lora_targets") or find_default_targets(model)
    config = peft.LoraConfig(r=options["lora_rank"], target_modules=targets)
    peft.get_peft_model(model, config)


def find_default_targets(model: Any) -> list[str]:
    """Return the names of the layers that have adapters by default."""
    from moetool.memory.training.adapted_layers import find_adapted_layers

    return sorted({path.rpartition(".")[2] for path in find_adapted_layers(model, ()).paths})


def freeze(model: Any, frozen: str | None) -> None:
    """Let every parameter be trained except those of a component."""
    from moetool.anatomy.components import Component
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton

    component = {"experts": Component.ROUTED_EXPERTS, "router": Component.ROUTER}.get(frozen or "")
    placement = RoutedSkeleton.of(model).placement
    for path, parameter in model.named_parameters():
        is_frozen = component is not None and placement.place(path).component is component
        parameter.requires_grad_(parameter.is_floating_point() and not is_frozen)


def compare(file: Path, models: Sequence[str]) -> None:
    """Print how far the estimate of each line of a file is from what was measured."""
    for line in map(json.loads, file.read_text().splitlines()):
        if not models or line["model"] in models:
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
    from moetool.memory.training.adapted_layers import find_adapted_layers
    from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
    from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
    from moetool.simulation.training.adapters import adapted
    from moetool.simulation.training.optimizer_kinds import Optimizer
    from moetool.simulation.training.training_replay import replay_training
    from moetool.simulation.training.training_run import TrainingOptions, run_training

    options = line["options"]
    batch_size, num_tokens = options["sizes"]
    builder, scenario = prepare_case(
        line["model"], {"num_layers": line["num_layers"], "task": "forward"}
    )
    skeleton = build_as_measured(builder, scenario, transformers=line["transformers"])
    freeze(skeleton, options.get("frozen"))
    with contextlib.ExitStack() as stack:
        if "lora_rank" in options:
            paths = find_adapted_layers(skeleton, options.get("lora_targets", ())).paths
            skeleton.requires_grad_(False)
            stack.enter_context(adapted(skeleton, paths, rank=options["lora_rank"]))
        timeline = run_training(
            skeleton,
            TrainingOptions(
                batch_size,
                num_tokens,
                optimizer=Optimizer(options.get("optimizer", "adamw")),
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
