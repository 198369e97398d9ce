"""Stand-ins for flash-attn's kernels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import modeling_flash_attention_utils

from moetool.simulation.attention.flash import count_splits, set_flash, standing_in_for_flash
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.timeline import Origins, Timeline
from tests.simulation.skeletons import build_family_skeleton

MEASURED = Path("benchmarks/memory/measured/flash_h200.jsonl")
FLASH = ("flash_attention_2", "flash_attention_3")
NUM_PLACES = 2 * 132


def run_flash(family: str, implementation: str, *, new: int = 1, **options: Any) -> Timeline:
    skeleton = build_family_skeleton(family).bfloat16().eval()
    set_flash(skeleton, implementation)
    run = MemoryRun(skeleton, RunOptions(**options))
    return run.generate(num_prompt_tokens=12, num_new_tokens=new)


def list_sizes(timeline: Timeline, operation: str) -> list[int]:
    """Return the sizes of the blocks that an operation took in the first attention."""
    places = [(timeline.origins[event.origin], event.num_bytes) for event in timeline.events]
    layer = "model.layers.0"
    return [
        size
        for place, size in places
        if size > 0 and place.operation == operation and place.layer == layer
        if "attn" in place.module
    ]


@pytest.mark.parametrize("implementation", FLASH)
def test_a_prompt_takes_a_number_for_each_query_and_a_state(implementation: str) -> None:
    timeline = run_flash("mixtral", implementation, batch_size=2)
    num_heads, num_queries = 4, 12
    sums = 2 * num_heads * num_queries * 4
    assert list_sizes(timeline, "new_empty")[0] == sums
    in_attention = [origin.operation for origin in timeline.origins if "attn" in origin.module]
    assert in_attention
    assert "_softmax" not in in_attention


@pytest.mark.parametrize("implementation", FLASH)
def test_pads_are_taken_out_and_put_back(implementation: str) -> None:
    plain, padded = (
        run_flash("qwen3_moe", implementation, batch_size=2, has_padding=has_padding)
        for has_padding in (False, True)
    )
    assert not list_sizes(plain, "index")
    # Queries, keys and values of all tokens but one pad.
    assert len(list_sizes(padded, "index")) == 3
    head_bytes = 23 * 16 * 2
    assert {size % head_bytes for size in list_sizes(padded, "index")} == {0}


def test_a_model_goes_back_to_its_packages_afterwards() -> None:
    module: Any = modeling_flash_attention_utils
    before = (module._loaded_implementation, module._flash_fn)
    with standing_in_for_flash("flash_attention_2"):
        assert module._loaded_implementation == "flash_attention_2"
    assert (module._loaded_implementation, module._flash_fn) == before


@pytest.mark.parametrize(
    ("family", "words"), [("llama4_text", "Flash Attention"), ("gpt_oss", "it takes only")]
)
def test_a_family_without_it_is_refused(family: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        set_flash(build_family_skeleton(family), "flash_attention_2")


@pytest.mark.parametrize(
    "line", [json.loads(text) for text in MEASURED.read_text().splitlines()], ids=str
)
def test_torch_took_the_same_on_an_h200_for_its_copy_of_the_kernel(line: dict[str, Any]) -> None:
    batch_size, num_queries, num_keys, num_heads, num_key_heads, width = line["flash"]
    query, key, value = (
        torch.empty((batch_size, length, heads, width), dtype=torch.bfloat16, device="meta")
        for length, heads in (
            (num_queries, num_heads),
            (num_keys, num_key_heads),
            (num_keys, num_key_heads),
        )
    )
    module: Any = modeling_flash_attention_utils
    with standing_in_for_flash("flash_attention_2"):
        attend = module._flash_fn
    with AllocationRecorder(nn.Module(), origins=Origins()) as recorder:
        kept = attend(query, key, value, causal=True)
        sizes = [event.num_bytes for event in recorder.events if event.num_bytes > 0]
    # torch's copy has a further number for its random numbers.
    assert [*sizes, 8] == line["sizes"]
    assert kept.shape == query.shape


def count_plainly(num_blocks: int, num_key_blocks: int) -> int:
    """Return the number of splits by trying each, as flash-attn's comments describe it."""
    if num_blocks >= 0.8 * NUM_PLACES:
        return 1
    found: list[tuple[int, float]] = []
    lengths: set[int] = set()
    for number in range(1, min(128, NUM_PLACES, num_key_blocks) + 1):
        length = math.ceil(num_key_blocks / number)
        if number > 1 and length == math.ceil(num_key_blocks / (number - 1)):
            continue
        lengths.add(length)
        waves = num_blocks * number / NUM_PLACES
        found.append((number, waves / math.ceil(waves)))
    best = max(share for _, share in found)
    return next(number for number, share in found if share >= 0.85 * best)


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 50_000))
def test_splits_keep_the_processors_busy(batch_size: int, num_heads: int, num_keys: int) -> None:
    sizes = {"batch_size": batch_size, "num_heads": num_heads, "num_queries": 4}
    found = count_splits(**sizes, num_keys=num_keys, width=128)
    assert found == count_plainly(batch_size * num_heads, math.ceil(num_keys / 128))
    assert found == 1 or batch_size * num_heads < NUM_PLACES
