"""Memory that a GPU shows for published geometries with random weights, beside the estimates.

    python -m benchmarks.memory_accuracy measure measured.jsonl [MODEL ...]   # on a GPU
    python -m benchmarks.memory_accuracy compare benchmarks/memory_h200.jsonl # anywhere

Each model is measured in a process of its own, its scenarios one after the other. Each line of the
file is one scenario: what torch and the device showed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

# Batch size, prompt tokens, new tokens: one short, a long prompt, in between, a wide batch, and
# mostly decoding.
SCENARIOS = ((1, 128, 32), (1, 8192, 16), (8, 2048, 16), (32, 512, 16), (16, 256, 128))

# By kind of attention: every head, grouped, latent, eager with sinks and windows, short
# convolutions, Mamba-2, gated delta net, Mamba.
MODELS = (
    "olmoe-1b-7b",
    "qwen1.5-moe-a2.7b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "phi-3.5-moe",
    "granite-3.0-3b-a800m",
    "ernie-4.5-21b-a3b",
    "deepseek-v2-lite",
    "moonlight-16b-a3b",
    "gpt-oss-20b",
    "gemma-4-26b-a4b",
    "lfm2-8b-a1b",
    "nemotron-3-nano-30b-a3b",
    "qwen3.5-35b-a3b",
    "jamba-v0.1",
)
_FIGURES = ("weights_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "total_device_bytes")


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "measure-one", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    match arguments.action:
        case "measure":
            for model in arguments.models or MODELS:
                command = ["measure-one", str(arguments.file), model]
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.memory_accuracy", *command], check=False
                )
        case "measure-one":
            for model in arguments.models:
                measure_model(model, arguments.file)
        case _:
            compare(arguments.file, only=arguments.models)


def measure_model(model: str, file: Path) -> None:
    """Append what the GPU shows for a model's scenarios to a file."""
    import torch
    import transformers

    from moetool.memory.measure import measure_scenarios

    builder, scenarios = _prepare(model)
    for scenario, measured in zip(scenarios, measure_scenarios(builder, scenarios), strict=True):
        line = {
            "model": model,
            "batch_size": scenario.batch_size,
            "num_prompt_tokens": scenario.num_prompt_tokens,
            "num_new_tokens": scenario.num_new_tokens,
            "gpu": measured.gpu,
            **asdict(measured.figures),
            "context_bytes": measured.context_bytes,
            "seconds": round(measured.seconds, 3),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        print(json.dumps(line), flush=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def compare(file: Path, *, only: list[str]) -> None:
    """Print, for each scenario in a file, how far the estimate is from what was measured."""
    from moetool.memory.runs import run_scenario

    errors: dict[str, list[float]] = {"allocated": [], "reserved": []}
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    for model in dict.fromkeys(line["model"] for line in lines):
        if only and model not in only:
            continue
        builder, scenarios = _prepare(model)
        skeleton = builder.build(scenarios[0])
        for line in (line for line in lines if line["model"] == model):
            sizes = tuple(line[name] for name in ("batch_size", "num_prompt_tokens", "num_new_tokens"))
            scenario = next(
                s
                for s in scenarios
                if (s.batch_size, s.num_prompt_tokens, s.num_new_tokens) == sizes
            )
            run = run_scenario(
                skeleton,
                scenario,
                workspace_bytes=32 * 2**20,
                context_bytes=738_197_504,
            )
            estimated = asdict(run.figures)
            off = {name: estimated[name] - line[name] for name in _FIGURES}
            rest = line["peak_allocated_bytes"] - line["weights_bytes"]
            allocated = off["peak_allocated_bytes"] / line["peak_allocated_bytes"]
            reserved = off["peak_reserved_bytes"] / line["peak_reserved_bytes"]
            errors["allocated"].append(abs(allocated))
            errors["reserved"].append(abs(reserved))
            print(
                f"{model:26} {sizes!s:16} weights {off['weights_bytes']:+7,} B  "
                f"allocated {allocated:+.4%} (of the rest {off['peak_allocated_bytes'] / rest:+.2%},"
                f" {off['peak_allocated_bytes'] / 2**20:+.2f} MiB)  reserved {reserved:+.3%}  "
                f"device {off['total_device_bytes'] / 2**30:+.3f} GiB"
            )
    for name, values in errors.items():
        print(f"{name}: median {statistics.median(values):.4%}, worst {max(values):.4%}")


def _prepare(model: str):  # type: ignore[no-untyped-def]
    from moetool.checkpoint.reference import resolve_model
    from moetool.inspection.subject import AskedSource, find_subject
    from moetool.memory.scenario import Scenario
    from moetool.memory.skeletons import SkeletonBuilder

    subject = find_subject(resolve_model(model), source=AskedSource.SKELETON, revision=None)
    return SkeletonBuilder(subject), [
        Scenario(
            batch_size=batch_size,
            num_prompt_tokens=num_prompt_tokens,
            num_new_tokens=num_new_tokens,
            dtype="bfloat16",
        )
        for batch_size, num_prompt_tokens, num_new_tokens in SCENARIOS
    ]


if __name__ == "__main__":
    main()
