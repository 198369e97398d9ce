"""Measure the memory of models with packed experts on a GPU, and compare the estimates with it.

    python -m benchmarks.quantized.memory measure packed.jsonl [MODEL ...] --events FOLDER  # on a GPU
    python -m benchmarks.quantized.memory compare packed.jsonl                              # anywhere

Published geometries are cut to their first layers, with weights drawn while moetool's loader packs
them. Each case runs twice: with experts chosen in turns, as the estimate assumes, and as random
routers choose them. Figures leave out what the process held before the model was loaded. The exit
status is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.memory.accuracy import build_as_measured, prepare_case
from benchmarks.memory.training import recording, release
from benchmarks.quantized.cases import exit_if_failed, reporting

# For each model, the layers that are left.
MODELS = {
    "mixtral-8x7b": 3,
    "qwen3-30b-a3b": 8,
    "olmoe-1b-7b": 8,
    "gpt-oss-20b": 6,
    "deepseek-v2-lite": 8,
}
# Sequences, tokens of each prompt, new tokens.
SCENARIOS = ((8, 2048, 8), (1, 512, 8), (16, 128, 8))
FURTHER_FORMATS: tuple[Mapping[str, Any], ...] = (
    {"quantization": "nf4", "is_double_quantized": True},
    {"quantization": "int8"},
    {"quantization": "fp4"},
)
FURTHER_MODELS = ("olmoe-1b-7b", "gpt-oss-20b", "mixtral-8x7b")
IN_TURNS, AS_CHOSEN = "in turns", "as chosen"


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--events", type=Path, help="a folder for the sizes of all allocations")
    parser.add_argument("--seconds", type=float, default=75.0)
    arguments = parser.parse_args()
    only = arguments.models or list(MODELS)
    if arguments.action == "compare":
        compare(arguments.file, only)
        return
    end = time.monotonic() + arguments.seconds
    cases: list[tuple[str, Mapping[str, Any]]] = [(m, {"quantization": "nf4"}) for m in only]
    cases += [(m, form) for form in FURTHER_FORMATS for m in FURTHER_MODELS if m in only]
    for model, form in cases:
        if time.monotonic() < end:
            with reporting(f"{model} {dict(form)}"):
                measure_model(model, form, file=arguments.file, events=arguments.events)
    exit_if_failed()


def measure_model(model: str, form: Mapping[str, Any], *, file: Path, events: Path | None) -> None:
    """Load a model, and append what each scenario took to a file."""
    import torch

    from benchmarks.quantized.random_weights import load_drawn
    from moetool.quantizing.quantizer import ExpertsConfig

    torch.cuda.init()
    options = {**form, "experts": "quantized"}
    builder, _ = prepare_case(model, {**options, "num_layers": MODELS[model]})
    release()
    held_before_bytes = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loaded: Any = load_drawn(
        builder.make_config(),
        device="cuda:0",
        quantization_config=ExpertsConfig(
            form["quantization"], form.get("is_double_quantized", False)
        ),
    )
    of_model = {
        "model": model,
        "num_layers": MODELS[model],
        "gpu": torch.cuda.get_device_name(),
        "loading_peak_bytes": torch.cuda.max_memory_allocated() - held_before_bytes,
    }
    release()
    of_model["weights_bytes"] = torch.cuda.memory_allocated() - held_before_bytes
    of_model |= {"torch": torch.__version__, "transformers": version("transformers")}
    of_model["bitsandbytes"] = version("bitsandbytes")
    is_first_format = form == {"quantization": "nf4"}
    for sizes in SCENARIOS if is_first_format else SCENARIOS[:1]:
        names = ("batch_size", "num_prompt_tokens", "num_new_tokens")
        case = {**options, **dict(zip(names, sizes, strict=True))}
        for routing in (IN_TURNS, AS_CHOSEN) if is_first_format else (IN_TURNS,):
            with reporting(f"{model} {case} {routing}"):
                line, found = measure_case(
                    loaded,
                    case,
                    routing,
                    held_before_bytes=held_before_bytes,
                    is_recorded=routing == IN_TURNS and events is not None,
                )
                line = {**of_model, "options": case, "routing": routing, **line}
                print(json.dumps(line), flush=True)
                with file.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                if found and events is not None:
                    events.mkdir(parents=True, exist_ok=True)
                    words = "-".join([model, *map(str, form.values()), *map(str, sizes)])
                    path = events / f"{words}.json.z"
                    path.write_bytes(zlib.compress(json.dumps(found).encode(), 9))


def measure_case(
    loaded: Any,
    case: Mapping[str, Any],
    routing: str,
    *,
    held_before_bytes: int,
    is_recorded: bool,
) -> tuple[dict[str, Any], list[Any]]:
    """Return the figures of a scenario, and the allocations of its run in order."""
    import torch

    from moetool.memory.measure import _run
    from moetool.memory.scenario import Scenario

    scenario = Scenario(dtype="bfloat16", **case)
    sizes: list[Any] = []
    allocated: list[int] = []
    reserved: list[int] = []

    def end_phase() -> None:
        allocated.append(torch.cuda.max_memory_allocated() - held_before_bytes)
        reserved.append(torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()

    num_calls = 0

    def see_call(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            end_phase()

    hooks = [loaded.register_forward_pre_hook(see_call)]
    if routing == IN_TURNS:
        hooks += [
            module.register_forward_pre_hook(choose_in_turns, with_kwargs=True)
            for module in loaded.modules()
            if "packed_matrices" in module.__dict__
        ]
    try:
        release()
        torch.cuda.reset_peak_memory_stats()
        with recording(sizes) if is_recorded else nullcontext():
            cache_bytes = _run(loaded, scenario)
            torch.cuda.synchronize()
            end_phase()
    finally:
        for hook in hooks:
            hook.remove()
    line = {
        "cache_bytes": cache_bytes,
        "prefill_peak_bytes": allocated[0],
        "decode_peak_bytes": allocated[-1],
        "peak_allocated_bytes": max(allocated),
        "peak_reserved_bytes": max(reserved),
    }
    return line, sizes


def choose_in_turns(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Overwrite the ids of a call of experts with all experts in turns."""
    import torch

    ids = args[1] if len(args) > 1 else kwargs["top_k_index"]
    num_experts = module.packed_matrices[0].num_experts
    turns = torch.arange(ids.numel(), device=ids.device) % num_experts
    ids.copy_(turns.view(ids.shape))


def compare(file: Path, models: list[str]) -> None:
    """Print how far the estimate of each line of a file is from what was measured."""
    for line in map(json.loads, file.read_text().splitlines()):
        if line["model"] in models:
            found = simulate_line(line)
            off = ", ".join(
                f"{name.removesuffix('_bytes')} {found[name] / line[name] - 1:+.3%}"
                for name in found
            )
            options = line["options"]
            print(line["model"], *options.values(), line["routing"], off, sep=", ", flush=True)


def simulate_line(line: Mapping[str, Any]) -> dict[str, int]:
    """Return the simulated figures of a line of the file."""
    from moetool.catalogue.gpus import find_gpu
    from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
    from moetool.memory.simulated.runs import run_scenario

    builder, scenario = prepare_case(
        line["model"], {**line["options"], "num_layers": line["num_layers"]}
    )
    run = run_scenario(
        build_as_measured(builder, scenario, transformers=line["transformers"]),
        scenario,
        workspace_bytes=find_workspace_bytes(find_gpu("h200")),
        context_bytes=CONTEXT_BYTES,
    )
    prefill, decode = (peak.parts.allocated_bytes for peak in run.peaks)
    assert prefill is not None
    assert decode is not None
    return {
        "weights_bytes": run.figures.weights_bytes,
        "cache_bytes": run.figures.cache_bytes,
        "prefill_peak_bytes": prefill,
        "decode_peak_bytes": decode,
        "peak_reserved_bytes": run.figures.peak_reserved_bytes,
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
