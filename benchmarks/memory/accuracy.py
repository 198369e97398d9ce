"""Measure memory of published geometries on a GPU, and compare the estimates with it.

    python -m benchmarks.memory.accuracy measure measured.jsonl [MODEL ...]     # on a GPU
    python -m benchmarks.memory.accuracy mechanisms measured.jsonl [MODEL ...]  # on a GPU
    python -m benchmarks.memory.accuracy compare benchmarks/memory/measured/memory_h200.jsonl   # anywhere

`mechanisms` takes published geometries that are too large for one GPU, cut to their first layers.

Weights are random. Each scenario is measured in a separate process, as a user would run it: memory
that an earlier one gave back to the driver changes where the next one's memory lies, and so how well
blocks fit. Each line of the file is one scenario with what torch and the device showed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cut_models import write_cut_model

# Batch size, prompt tokens, new tokens: a short prompt, a long one, one in between, a wide batch,
# and mostly decoding.
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
# The other options, each on the smallest model that has it.
OTHERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("olmoe-1b-7b", {"task": "forward", "num_new_tokens": 0}),
    ("olmoe-1b-7b", {"cache": "static"}),
    ("olmoe-1b-7b", {"has_padding": True}),
    ("olmoe-1b-7b", {"attention": "eager"}),
    ("olmoe-1b-7b", {"experts_implementation": "eager"}),
    ("qwen1.5-moe-a2.7b", {"dtype": "float32"}),
    ("switch-base-8", {"dtype": "float32"}),
)
_QWEN4_FIELDS = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 1024,
    "indexer_compress_ratio": 4,
}
# Full attention comes at a published depth that these cuts don't reach.
_MINIMAX_FIELDS = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
_GRANITE_FIELDS = {"layer_types": ["mamba"] * 3 + ["attention"] + ["mamba"] * 3 + ["attention"]}
# Models whose state or computation differs: compressed and sparse attention, linear attention of
# several kinds, Mamba-2, chunks, an encoder-decoder. For each model, the layers that are left and
# other changes to the published configuration.
MECHANISMS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("deepseek-v4-flash", {"num_layers": 4}),
    ("deepseek-v3", {"num_layers": 5}),
    ("deepseek-v3.2", {"num_layers": 5}),
    ("glm-5", {"num_layers": 5}),
    ("minimax-m3", {"num_layers": 5}),
    ("hy_v4", {"num_layers": 6}),
    ("qwen4_exp_text", {"num_layers": 8, "fields": _QWEN4_FIELDS}),
    ("kimi_linear", {"num_layers": 8}),
    ("bailing_hybrid", {"num_layers": 8}),
    ("qwen3-next-80b-a3b", {"num_layers": 8}),
    ("minimax-text-01", {"num_layers": 4, "fields": _MINIMAX_FIELDS}),
    ("granitemoehybrid", {"num_layers": 8, "fields": _GRANITE_FIELDS}),
    ("zaya", {"num_layers": 8}),
    ("step-3.7-flash", {"num_layers": 8}),
    ("mimo-v2-flash", {"num_layers": 6}),
    ("llama-4-scout-17b-16e", {"num_layers": 8}),
    ("glm-4.5-air", {"num_layers": 8}),
    ("dbrx", {"num_layers": 6}),
    ("jamba-v0.1", {"num_layers": 8}),
    ("nemotron-3-nano-30b-a3b", {}),
    ("nllb-moe-54b", {"num_layers": 4, "fields": {"encoder_layers": 4, "decoder_layers": 4}}),
)
MECHANISM_SCENARIOS = ((1, 128, 32), (8, 2048, 16), (3, 777, 5), (32, 512, 16))
_OTHERS_SIZES = {"batch_size": 4, "num_prompt_tokens": 512, "num_new_tokens": 16}
_HEADER = """\
| model | batch x prompt x new | measured peak, GiB | weights, bytes | allocated | of the rest | \
reserved | device, GiB | time / bound |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""
_WORDS = {
    **dict.fromkeys(("batch_size", "num_prompt_tokens", "num_new_tokens"), ""),
    "cache": "{} cache",
    "has_padding": "pads",
    "attention": "{} attention",
    "experts_implementation": "{} experts",
}
_ROUTERS_IN_FLOAT32_SINCE_5_24 = (
    "DeepseekV2TopkRouter",
    "DeepseekV3TopkRouter",
    "NemotronHTopkRouter",
)
_FIGURES = ("weights_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "total_device_bytes")


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "mechanisms", "measure-one", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    match arguments.action:
        case "measure" | "mechanisms":
            list_all = list_cases if arguments.action == "measure" else list_mechanisms
            for model, options in list_all(arguments.models):
                case = json.dumps([model, options])
                script = [sys.executable, "-m", "benchmarks.memory.accuracy"]
                subprocess.run([*script, "measure-one", str(arguments.file), case], check=False)
        case "measure-one":
            model, options = json.loads(arguments.models[0])
            measure_case(model, options, arguments.file)
        case _:
            compare(arguments.file, only=arguments.models)


def list_cases(models: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the scenarios to measure: each a model and its options."""
    cases = [
        (
            model,
            {"batch_size": batch, "num_prompt_tokens": prompt, "num_new_tokens": new},
        )
        for model in MODELS
        for batch, prompt, new in SCENARIOS
    ]
    cases += [(model, {**_OTHERS_SIZES, **options}) for model, options in OTHERS]
    return [(model, options) for model, options in cases if not models or model in models]


def list_mechanisms(models: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the scenarios of models that are cut to their first layers."""
    return [
        (
            model,
            {"batch_size": batch, "num_prompt_tokens": prompt, "num_new_tokens": new, **options},
        )
        for model, options in MECHANISMS
        for batch, prompt, new in MECHANISM_SCENARIOS
        if not models or model in models
    ]


def measure_case(model: str, options: Mapping[str, Any], file: Path) -> None:
    """Append the GPU's figures for a scenario to a file."""
    import torch
    import transformers

    from moetool.memory.measure import measure_scenarios

    builder, scenario = prepare_case(model, options)
    (measured,) = measure_scenarios(builder, [scenario])
    line = {
        "model": model,
        "options": dict(options),
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
    """Print a table of how far each estimate is from what was measured, and of speed bounds."""
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
    from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
    from moetool.memory.simulated.runs import run_scenario
    from moetool.memory.speed.bounds import bound_speed
    from moetool.memory.speed.experts_touched import find_choices

    gpu = _find_h200()
    errors: dict[str, list[float]] = {"peak allocated": [], "peak reserved": []}
    num_exact = 0
    print(_HEADER)
    for line in (json.loads(text) for text in file.read_text().splitlines()):
        model = line["model"]
        if only and model not in only:
            continue
        builder, scenario = prepare_case(model, line["options"])
        skeleton = build_as_measured(builder, scenario, transformers=line["transformers"])
        # Not `estimate_memory`, which refuses scenarios beyond a model's context.
        run = run_scenario(
            skeleton,
            scenario,
            workspace_bytes=find_workspace_bytes(gpu),
            context_bytes=CONTEXT_BYTES,
        )
        figures = asdict(run.figures)
        off = {name: figures[name] - line[name] for name in _FIGURES}
        allocated = off["peak_allocated_bytes"] / line["peak_allocated_bytes"]
        reserved = off["peak_reserved_bytes"] / line["peak_reserved_bytes"]
        num_exact += not off["peak_allocated_bytes"]
        errors["peak allocated"].append(abs(allocated))
        errors["peak reserved"].append(abs(reserved))
        rest = line["peak_allocated_bytes"] - line["weights_bytes"]
        # The cache that steps read is left out: a bound on each of them.
        routed = RoutedSkeleton.of(skeleton)
        bound = bound_speed(
            skeleton,
            scenario,
            gpu,
            cache_bytes=0,
            choices=find_choices(routed),
            unquantized=routed,
        )
        cells = (
            model,
            _name(line["options"]),
            f"{line['peak_allocated_bytes'] / 2**30:.2f}",
            f"{off['weights_bytes']:+,}",
            f"{allocated:+.4%}",
            f"{off['peak_allocated_bytes'] / rest:+.3%}",
            f"{reserved:+.3%}",
            f"{off['total_device_bytes'] / 2**30:+.3f}",
            _compare_time(line["seconds"], bound, scenario),
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    for name, values in errors.items():
        print(
            f"{name}: {len(values)} cases, median {statistics.median(values):.4%}, "
            f"worst {max(values):.4%}"
        )
    print(f"peak allocated to the byte: {num_exact} of {len(errors['peak allocated'])}")


def _compare_time(seconds: float, bound: Any, scenario: Any) -> str:
    """Return the time that a run took over its bound."""
    if bound.prefill_s is None or (
        scenario.num_new_tokens > 1 and bound.decode_s_per_token is None
    ):
        return "unknown"
    steps = max(scenario.num_new_tokens - 1, 0)
    return f"{seconds / (bound.prefill_s + steps * (bound.decode_s_per_token or 0)):.1f}"


def prepare_case(model: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the builder of a model, and the scenario that the options describe."""
    from moetool.checkpoint.reference import resolve_model
    from moetool.checkpoint.subject import AskedSource, find_subject
    from moetool.memory.loaded.skeletons import SkeletonBuilder
    from moetool.memory.scenario import CacheKind, Scenario, Task

    enums = {"task": Task, "cache": CacheKind}
    values: dict[str, Any] = {"dtype": "bfloat16", **options}
    num_layers, fields = values.pop("num_layers", None), values.pop("fields", None)
    if num_layers is not None:
        model = str(write_cut_model(model, num_layers=num_layers, fields=fields))
    subject = find_subject(resolve_model(model), source=AskedSource.SKELETON, revision=None)
    values |= {name: kind(values[name]) for name, kind in enums.items() if name in values}
    return SkeletonBuilder(subject), Scenario(**values)


def build_as_measured(builder: Any, scenario: Any, *, transformers: str) -> Any:
    """Return a model's skeleton with weights in the dtypes that a version of transformers loads.

    From 5.24 on it keeps more routers' weights in float32 than before.
    """
    import torch

    skeleton = builder.build(scenario)
    if tuple(map(int, transformers.split(".")[:2])) < (5, 24) and scenario.dtype == "bfloat16":
        for module in skeleton.modules():
            if type(module).__name__ in _ROUTERS_IN_FLOAT32_SINCE_5_24:
                weight = torch.empty_like(module.weight, dtype=torch.bfloat16)
                module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return skeleton


def _find_h200() -> Any:
    from moetool.catalogue.gpus import find_gpu

    return find_gpu("h200")


def _name(options: Mapping[str, Any]) -> str:
    sizes = [options[name] for name in ("batch_size", "num_prompt_tokens", "num_new_tokens")]
    others = [_WORDS.get(name, "{}").format(value) for name, value in options.items()]
    return ", ".join([" x ".join(map(str, sizes)), *(word for word in others if word)])


if __name__ == "__main__":
    main()
