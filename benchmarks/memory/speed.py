"""Measure the seconds of prefill and of decoding steps on a GPU, and the speed of its bus.

    python -m benchmarks.memory.speed [measured.jsonl]     # on a GPU, 100 s

Published geometries with random weights in bfloat16, one after another in one process. Each line is a
run as `moetool.memory.measure` shows it: its memory, then the medians of its phases on loaded
kernels. The last lines are decoding steps of a model whose experts accelerate keeps on the CPU.
`tools/collect_receipts.py` makes receipts of them.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory.accuracy import prepare_case

# By what is scarce: the time of a machine with a GPU.
_MOST_SECONDS = 100.0
_SIZES = ((1, 2048, 17), (8, 2048, 17), (32, 512, 17))
GEOMETRIES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("olmoe-1b-7b", {}),
    ("qwen3-30b-a3b", {"num_layers": 8}),
    ("mixtral-8x7b", {"num_layers": 4}),
    ("deepseek-v2-lite", {"num_layers": 8}),
    ("gpt-oss-20b", {"num_layers": 8}),
)
_OFFLOADED = ("mixtral-8x7b", {"num_layers": 4}, 2)
_NUM_OFFLOADED_STEPS = 3


def main() -> None:
    """Print a line for each run, and append it to a file if one is named."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    start = time.perf_counter()

    def write(line: Mapping[str, Any]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        if file is not None:
            with file.open("a") as stream:
                stream.write(text + "\n")

    for model, options in GEOMETRIES:
        if time.perf_counter() - start > _MOST_SECONDS - 10:
            print(f"no time left for {model}", flush=True)
            continue
        try:
            for line in measure_model(model, options, _SIZES):
                write(line)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
        print(f"{time.perf_counter() - start:.1f} s so far", flush=True)
    try:
        write(measure_offloaded(*_OFFLOADED))
    except Exception:  # noqa: BLE001
        traceback.print_exc()
    print(f"{time.perf_counter() - start:.1f} s in all", flush=True)


def measure_model(
    model: str, options: Mapping[str, Any], sizes: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Return a line for each size: the case, and what was measured."""
    from moetool.memory.measure import measure_scenarios

    builder, common = prepare_case(model, options)
    scenarios = [
        replace(common, batch_size=batch, num_prompt_tokens=prompt, num_new_tokens=new)
        for batch, prompt, new in sizes
    ]
    return [
        {
            "model": model,
            "options": {
                "batch_size": scenario.batch_size,
                "num_prompt_tokens": scenario.num_prompt_tokens,
                "num_new_tokens": scenario.num_new_tokens,
                **options,
            },
            **asdict(measured),
        }
        for scenario, measured in zip(scenarios, measure_scenarios(builder, scenarios), strict=True)
    ]


def measure_offloaded(model: str, options: Mapping[str, Any], num_offloaded: int) -> dict[str, Any]:
    """Return the seconds of decoding steps with the experts of the last layers on the CPU."""
    from accelerate import dispatch_model

    from moetool.memory.measured.machine import measure_bus

    gc.collect()
    torch.cuda.empty_cache()
    builder, scenario = prepare_case(model, options)
    loaded = builder.build(scenario, device="cuda")
    layers = loaded.model.layers
    moved = {
        f"model.layers.{len(layers) - 1 - index}.mlp.experts" for index in range(num_offloaded)
    }
    device_map: dict[str, Any] = {"model.embed_tokens": 0, "model.norm": 0, "lm_head": 0}
    if hasattr(loaded.model, "rotary_emb"):
        device_map["model.rotary_emb"] = 0
    for index, layer in enumerate(layers):
        names = [name for name, _ in layer.named_children() if name != "mlp"]
        names += [f"mlp.{name}" for name, _ in layer.mlp.named_children()]
        for name in names:
            full = f"model.layers.{index}.{name}"
            device_map[full] = "cpu" if full in moved else 0
    moved_bytes = sum(
        parameter.nbytes
        for name, parameter in loaded.named_parameters()
        if any(name.startswith(f"{prefix}.") for prefix in moved)
    )
    # accelerate takes what it keeps on the CPU from where it is.
    for name in moved:
        loaded.get_submodule(name).to("cpu")
    skipped = loaded._skip_keys_device_placement
    loaded = dispatch_model(loaded, device_map, main_device=0, skip_keys=skipped)
    steps: list[float] = []

    def note(*_: Any) -> None:
        torch.cuda.synchronize()
        steps.append(time.perf_counter())

    loaded.register_forward_hook(note)
    ids = torch.randint(5, 30_000, (1, 32), device="cuda")
    with torch.inference_mode():
        loaded.generate(ids, max_new_tokens=_NUM_OFFLOADED_STEPS + 1, disable_compile=True)
    bus = measure_bus()
    return {
        "offloaded": model,
        "options": dict(options),
        "gpu": torch.cuda.get_device_name(),
        "num_offloaded_layers": num_offloaded,
        "moved_bytes_per_token": moved_bytes,
        "decode_s_per_token": [round(end - begin, 4) for begin, end in pairwise(steps)],
        "bus": None if bus is None else asdict(bus),
    }


if __name__ == "__main__":
    main()
