"""Measure caches, beams and kernels of attention on a GPU, and compare the estimates with it.

    python -m benchmarks.memory.caches measure measured.jsonl [--site FOLDER] [--events FOLDER]
    python -m benchmarks.memory.caches compare measured.jsonl

Published geometries are cut to their first layers, with random weights. All cases run in one process,
so only allocated memory is compared. `--site` is a folder with optimum-quanto and hqq.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cut_models import write_cut_model

_SIZES = {"batch_size": 2, "num_prompt_tokens": 1024, "num_new_tokens": 16}
_OPTIONS: tuple[Mapping[str, Any], ...] = (
    {},
    {"num_beams": 4},
    {"cache": "offloaded"},
    {"cache_dtype": "int4"},
    {"cache_dtype": "fp8"},
    {"cache": "static"},
    {"cache": "offloaded_static"},
    {"cache_dtype": "int2"},
    {"cache_dtype": "int8"},
    {"num_return_sequences": 4},
    {"num_beams": 4, "cache": "offloaded"},
    {"num_beams": 4, "cache_dtype": "fp8"},
    {"num_beams": 4, "cache": "static"},
    {"cache_dtype": "int4", "num_new_tokens": 140},
)
CASES: tuple[tuple[str, int, Mapping[str, Any]], ...] = tuple(
    (model, num_layers, options)
    for model, num_layers, chosen in (
        ("olmoe-1b-7b", 6, _OPTIONS),
        ("mixtral-8x7b", 3, _OPTIONS[:5]),
    )
    for options in chosen
)
# Batch, queries, keys, heads, heads of keys, width of a head.
_ATTENTION = (
    (1, 1024, 1024, 16, 16, 128),
    (4, 512, 512, 32, 8, 128),
    (1, 1, 4096, 32, 8, 128),
    (1, 1, 4096, 16, 16, 64),
    (8, 1, 1000, 32, 8, 128),
)
NUM_EVENTS = 300_000


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--site", type=Path)
    parser.add_argument("--events", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "compare":
        compare(arguments.file)
        return
    if arguments.site is not None:
        sys.path.append(str(arguments.site))
    try_case("versions", print_versions)
    try_case("quanto", _replace_unpacking)
    for index, (model, num_layers, options) in enumerate(CASES):
        events = None if arguments.events is None else arguments.events / f"{index}.json.z"
        measure_case(model, num_layers, options, file=arguments.file, events=events)
        if index == 0:
            try_case("flash", _probe_flash)
            try_case("flash_attn", _probe_flash_attn)


def measure_case(
    model: str,
    num_layers: int,
    options: Mapping[str, Any],
    *,
    file: Path,
    events: Path | None = None,
) -> None:
    """Append the GPU's figures for a scenario to a file, and its allocations to another."""
    import torch

    from moetool.memory.measure import measure_scenarios

    def measure() -> None:
        builder, scenario = prepare_case(model, num_layers, options)
        if events is not None:
            events.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._record_memory_history(context=None, max_entries=NUM_EVENTS)
        (measured,) = measure_scenarios(builder, [scenario])
        line = {"model": model, "num_layers": num_layers, "options": dict(options)}
        line |= {"gpu": measured.gpu, **asdict(measured.figures), "seconds": measured.seconds}
        line |= {"torch": torch.__version__, "transformers": _find_version("transformers")}
        host: Any = getattr(torch.cuda, "host_memory_stats", dict)
        line["host"] = {k: v for k, v in host().items() if "bytes" in k and "peak" in k}
        print(json.dumps(line), flush=True)
        with file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if events is not None:
            events.write_bytes(zlib.compress(json.dumps(list_events()).encode()))

    try_case(f"{model} {dict(options)}", measure)


def compare(file: Path) -> None:
    """Print how far each estimate is from what was measured."""
    for text in file.read_text().splitlines():
        compare_case(json.loads(text))


def compare_case(line: Mapping[str, Any]) -> None:
    """Print how far the estimate of a measured scenario is from what was measured."""
    builder, scenario = prepare_case(line["model"], line["num_layers"], line["options"])
    figures = asdict(simulate_case(builder.build(scenario), scenario).figures)
    off = {
        name: figures[name] - line[name]
        for name in ("weights_bytes", "cache_bytes", "peak_allocated_bytes")
    }
    share = off["peak_allocated_bytes"] / line["peak_allocated_bytes"]
    rest = line["peak_allocated_bytes"] - line["weights_bytes"]
    print(
        f"| {line['model']} | {line['options'] or 'defaults'} | "
        f"{line['peak_allocated_bytes'] / 2**30:.3f} | {off['weights_bytes']:+,} | "
        f"{off['cache_bytes']:+,} | {off['peak_allocated_bytes']:+,} | {share:+.4%} | "
        f"{off['peak_allocated_bytes'] / rest:+.3%} |",
        flush=True,
    )


def simulate_case(model: Any, scenario: Any, *, assistant: Any = None) -> Any:
    """Return the run of a scenario on an H200."""
    from moetool.catalogue.gpus import read_gpus
    from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
    from moetool.memory.simulated.runs import run_scenario

    return run_scenario(
        model,
        scenario,
        assistant=assistant,
        workspace_bytes=find_workspace_bytes(read_gpus()["h200"]),
        context_bytes=CONTEXT_BYTES,
    )


def prepare_case(model: str, num_layers: int, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the builder of a cut model, and the scenario that the options describe."""
    from moetool.checkpoint.reference import resolve_model
    from moetool.checkpoint.subject import AskedSource, find_subject
    from moetool.memory.loaded.skeletons import SkeletonBuilder
    from moetool.memory.scenario import Scenario

    folder = write_cut_model(model, num_layers=num_layers)
    subject = find_subject(resolve_model(str(folder)), source=AskedSource.AUTO, revision=None)
    return SkeletonBuilder(subject), Scenario(**{**_SIZES, "dtype": "bfloat16", **options})


def try_case(name: str, function: Callable[[], None]) -> None:
    """Run a case, and print how long it took, or why it failed."""
    start = time.perf_counter()
    try:
        function()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.format_exc().splitlines()[-8:]
        print(json.dumps({"failed": name, "error": repr(error)[:300], "at": last}), flush=True)
    print(f"# {name}: {time.perf_counter() - start:.1f} s", flush=True)


def _find_version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def print_versions() -> None:
    """Print the versions of the packages that matter."""
    names = ("torch", "transformers", "optimum-quanto", "hqq", "flash-attn", "triton", "ninja")
    print(json.dumps({name: _find_version(name) for name in names}), flush=True)


def _replace_unpacking() -> None:
    """Unpack by torch where quanto's kernel can't be compiled, into a result of the same size."""
    import torch

    importlib.import_module("optimum.quanto")

    if shutil.which("nvcc"):
        print("# quanto compiles its kernel", flush=True)
        return

    def unpack(packed: Any, bits: int) -> Any:
        per_byte, num_rows = 8 // bits, packed.shape[0]
        data = packed.new_empty((num_rows * per_byte, *packed.shape[1:]))
        for index in range(per_byte):
            rows = data[index * num_rows : (index + 1) * num_rows]
            torch.bitwise_right_shift(packed, bits * index, out=rows)
            rows &= 2**bits - 1
        return data

    torch.library.impl("quanto::unpack", ["CUDA"])(unpack)
    print("# quanto's kernel is replaced: no nvcc", flush=True)


def list_events() -> list[list[Any]]:
    """Stop recording, and return the sizes allocated, or freed as negative numbers, and their stream."""
    import torch

    found: Any = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    kinds = ("alloc", "free_completed")
    return [
        [entry["size"] if entry["action"] == "alloc" else -entry["size"], entry["stream"] % 10**6]
        for entry in found
        if entry["action"] in kinds
    ]


def follow(run: Callable[[], Any]) -> list[int]:
    """Return the sizes that a function takes, and as negative numbers those that it gives back."""
    import torch

    run()
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history(context=None, max_entries=NUM_EVENTS)
    kept = run()
    torch.cuda.synchronize()
    sizes = [size for size, _ in list_events()]
    del kept
    return sizes


def _follow_taken(run: Callable[[], Any]) -> list[int]:
    """Return the sizes that a function takes."""
    return [size for size in follow(run) if size > 0]


def make_heads(case: tuple[int, ...], *, is_transposed: bool) -> list[Any]:
    """Return random queries, keys and values of a case."""
    import torch

    batch, queries, keys, heads, key_heads, width = case
    made = [
        torch.randn(batch, length, number, width, dtype=torch.bfloat16, device="cuda")
        for length, number in ((queries, heads), (keys, key_heads), (keys, key_heads))
    ]
    return [each.transpose(1, 2) for each in made] if is_transposed else made


def _probe_flash() -> None:
    """Print what torch's own kernels of attention allocate."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend: Any = torch.nn.functional.scaled_dot_product_attention
    raw: Any = torch.ops.aten._flash_attention_forward
    for case in _ATTENTION:
        is_causal = case[1] > 1
        with torch.inference_mode():
            heads = make_heads(case, is_transposed=True)
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, None):

                def run(heads: Any = heads, is_causal: bool = is_causal) -> Any:
                    return attend(*heads, is_causal=is_causal, enable_gqa=True)

                try:
                    if backend is None:
                        sizes = _follow_taken(run)
                    else:
                        with sdpa_kernel(backend):
                            sizes = _follow_taken(run)
                except RuntimeError as error:
                    sizes = [str(error)[:80]]  # type: ignore[list-item]
                print(json.dumps({"sdpa": str(backend), "case": case, "sizes": sizes}), flush=True)
            flat = make_heads(case, is_transposed=False)
            sizes = _follow_taken(
                partial(raw, *flat, None, None, case[1], case[2], 0.0, is_causal, False)
            )
            print(json.dumps({"flash": case, "sizes": sizes}), flush=True)


def _probe_flash_attn() -> None:
    """Print what flash-attn's kernels allocate, if it is installed."""
    import flash_attn  # type: ignore[import-not-found]
    import torch

    with torch.inference_mode():
        for case in _ATTENTION:
            heads = make_heads(case, is_transposed=False)
            sizes = _follow_taken(partial(flash_attn.flash_attn_func, *heads, causal=True))
            print(json.dumps({"flash_attn": case, "sizes": sizes}), flush=True)


if __name__ == "__main__":
    main()
