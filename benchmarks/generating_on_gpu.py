"""Measure compiled attention and assisted generation on a GPU, and compare the estimates with it.

    python -m benchmarks.generating_on_gpu measure measured.jsonl [--events FOLDER]
    python -m benchmarks.generating_on_gpu compare measured.jsonl

First come single kernels, then whole runs. A run with an assistant has heads of zeros, so that both
models always choose the first token, and every candidate is accepted.
"""

from __future__ import annotations

import argparse
import json
import types
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory.caches import (
    NUM_EVENTS,
    compare_case,
    follow,
    list_events,
    make_heads,
    measure_case,
    prepare_case,
    print_versions,
    simulate_case,
    try_case,
)

FLEX: dict[str, Any] = {"attention": "flex_attention"}
# Batch, queries, keys, heads, heads of keys, width of a head. The lengths change from call to call, as
# in a generation: what is compiled for the first ones is compiled anew for any length.
_CALLS = (
    (2, 1024, 1024, 32, 8, 128),
    (2, 1, 1025, 32, 8, 128),
    (2, 1, 1026, 32, 8, 128),
    (2, 1, 1027, 32, 8, 128),
    (2, 1536, 1536, 32, 8, 128),
    (1, 1000, 1000, 16, 16, 64),
)
# The target, its layers, the assistant's layers, tokens of the prompt and new ones.
ASSISTED = (("olmoe-1b-7b", 6, 2, 1024, 64), ("olmoe-1b-7b", 6, 2, 64, 64))


def main() -> None:
    """Measure, or compare with what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("measure", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--events", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "compare":
        compare(arguments.file)
        return
    try_case("versions", print_versions)
    for number, run in enumerate(ASSISTED):
        events = _name_events(arguments.events, f"assisted-{number}")
        try_case(f"assisted {run}", partial(_measure_assisted, run, events))
    for case in _CALLS:
        try_case(f"flex {case}", partial(_probe_flex, case))
    events = _name_events(arguments.events, "flex")
    measure_case("mixtral-8x7b", 3, FLEX, file=arguments.file, events=events)


def compare(file: Path) -> None:
    """Print how far estimates are from what was measured; single kernels are left to the tests."""
    for line in map(json.loads, file.read_text().splitlines()):
        if "options" in line:
            compare_case(line)
        elif "assisted" in line:
            figures = simulate_assisted(line).figures
            off = figures.peak_allocated_bytes - line["peak_allocated_bytes"]
            print(
                f"| {line['assisted']} | {line['peak_allocated_bytes'] / 2**30:.3f} | "
                f"{figures.weights_bytes - sum(line['weights_bytes']):+,} | {off:+,} | "
                f"{off / line['peak_allocated_bytes']:+.4%} |",
                flush=True,
            )


def simulate_assisted(line: Mapping[str, Any]) -> Any:
    """Return the simulated run of a measured one with an assistant."""
    name, num_layers, num_assistant_layers, num_prompt_tokens, num_new_tokens = line["assisted"]
    models: list[Any] = []
    for depth in (num_layers, num_assistant_layers):
        builder, scenario = prepare_case(name, depth, {})
        models.append(builder.build(scenario))
        models[-1].generation_config.eos_token_id = None
    scenario = replace(
        scenario,
        batch_size=1,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        assistant="small",
    )
    return simulate_case(models[0], scenario, assistant=models[1])


def _name_events(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json.z"


def _probe_flex(case: tuple[int, ...]) -> None:
    """Print what transformers' functions for flex attention allocate and free, in order."""
    import torch
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.masking_utils import flex_attention_mask

    batch_size, num_queries, num_keys = case[:3]
    offset = num_keys - num_queries
    module = types.SimpleNamespace(training=False)
    with torch.inference_mode():
        heads = make_heads(case, is_transposed=True)

        def make_mask() -> Any:
            device = torch.device("cuda")
            return flex_attention_mask(
                batch_size, num_queries, num_keys, q_offset=offset, device=device
            )

        def attend() -> Any:
            forward: Any = flex_attention_forward
            return forward(module, *heads, mask, scaling=0.1)

        for name, run in (("mask", make_mask), ("attention", attend)):
            mask = make_mask()
            print(json.dumps({name: case, "events": follow(run)}), flush=True)


def _measure_assisted(case: tuple[str, int, int, int, int], events: Path | None) -> None:
    """Print the peak of a run with an assistant, and keep its allocations."""
    import torch
    from transformers.generation import stopping_criteria

    name, num_layers, num_assistant_layers, num_prompt_tokens, num_new_tokens = case
    models: list[Any] = []
    sizes: list[int] = []
    for depth in (num_layers, num_assistant_layers):
        before = torch.cuda.memory_allocated()
        builder, scenario = prepare_case(name, depth, {})
        model: Any = builder.build(scenario, device="cuda")
        model.get_output_embeddings().weight.data.zero_()
        model.generation_config.eos_token_id = None
        models.append(model)
        sizes.append(torch.cuda.memory_allocated() - before)
    criteria: Any = stopping_criteria.ConfidenceCriteria
    decide = criteria.__call__

    def go_on(self: Any, input_ids: Any, scores: Any, **rest: Any) -> bool:
        # It computes how sure the assistant is, which equal logits never are.
        decide(self, input_ids, scores, **rest)
        return False

    criteria.__call__ = go_on
    torch.cuda.empty_cache()
    prompt = torch.randint(5, 1000, (1, num_prompt_tokens), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(context=None, max_entries=NUM_EVENTS)
    lengths: list[list[int]] = []
    hooks = [
        model.register_forward_pre_hook(
            lambda _, __, kwargs, number=number: lengths.append([number, _count_tokens(kwargs)]),
            with_kwargs=True,
        )
        for number, model in enumerate(models)
    ]
    try:
        output = models[0].generate(
            prompt,
            assistant_model=models[1],
            max_new_tokens=num_new_tokens,
            do_sample=False,
            disable_compile=True,
        )
    finally:
        criteria.__call__ = decide
        for hook in hooks:
            hook.remove()
    torch.cuda.synchronize()
    print(
        json.dumps(
            {
                "assisted": case,
                "gpu": torch.cuda.get_device_name(),
                "weights_bytes": sizes,
                "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
                "num_tokens": output.shape[1],
                "calls": lengths,
            }
        ),
        flush=True,
    )
    found = list_events()
    if events is not None:
        events.write_bytes(zlib.compress(json.dumps(found).encode()))


def _count_tokens(kwargs: dict[str, Any]) -> int:
    length: int = kwargs["input_ids"].shape[1]
    return length


if __name__ == "__main__":
    main()
