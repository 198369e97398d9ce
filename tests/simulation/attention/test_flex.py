"""Stand-ins for torch's compiled flex attention."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import masking_utils
from transformers.integrations import flex_attention as integration

from moetool.simulation.attention.flex import count_parts, make_block_mask, standing_in_for_flex
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.memory.timeline import Timeline
from tests.simulation.memory.memory_runs import set_up, summarize
from tests.simulation.skeletons import build_family_skeleton

NUM_PROMPT_TOKENS = 200
# Of the tiny Mixtral.
NUM_HEADS, NUM_KEY_HEADS, WIDTH = 4, 2, 16


def run_flex(
    family: str = "mixtral", *, new: int = 2, is_each_layer_run: bool = False, **options: Any
) -> Timeline:
    skeleton = set_up(build_family_skeleton(family).bfloat16(), attention="flex_attention")
    run = MemoryRun(skeleton, RunOptions(**options), is_each_layer_run=is_each_layer_run)
    return run.generate(num_prompt_tokens=NUM_PROMPT_TOKENS, num_new_tokens=new)


def list_attention_sizes(timeline: Timeline, *, call: int) -> Counter[tuple[str, int]]:
    """Return the blocks that the first layer's attention took in a call, by operation and size."""
    first, end = timeline.calls[call].first_event, timeline.calls[call].end_event
    places = [
        (timeline.origins[each.origin], each.num_bytes) for each in timeline.events[first:end]
    ]
    return Counter(
        (place.operation, size)
        for place, size in places
        if size > 0 and place.layer == "model.layers.0" and place.module == "self_attn"
    )


def is_causal(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return query >= key


@given(st.integers(1, 3), st.integers(1, 400), st.integers(1, 400))
def test_a_mask_has_the_tensors_of_torchs_own(
    batch_size: int, num_queries: int, num_keys: int
) -> None:
    sizes = (batch_size, None, num_queries, num_keys)
    real = create_block_mask(is_causal, *sizes, device="cpu")
    made = make_block_mask(is_causal, *sizes, device="meta")

    def describe(mask: BlockMask) -> list[tuple[Any, ...]]:
        tensors = [item for item in mask.as_tuple() if isinstance(item, torch.Tensor)]
        return [(each.shape, each.dtype, each.untyped_storage().nbytes()) for each in tensors]

    assert describe(made) == describe(real)
    assert made.shape == real.shape


def test_a_prompt_takes_no_scores_but_two_numbers_for_each_query() -> None:
    found = list_attention_sizes(run_flex(batch_size=2), call=0)
    rows = 2 * NUM_HEADS * NUM_PROMPT_TOKENS
    assert found["new_empty", rows * 4] == 2
    assert found["empty_permuted", rows * WIDTH * 2] == 1
    # The logarithms of sums, in the dtype of values.
    assert found["_to_copy", rows * 2] == 1
    assert max(size for _, size in found) == rows * WIDTH * 2


def test_a_token_takes_the_results_of_each_part_of_the_keys() -> None:
    found = list_attention_sizes(run_flex(batch_size=2), call=1)
    num_parts = 132 // (2 * NUM_KEY_HEADS) * 2
    assert count_parts(batch_size=2, num_key_heads=NUM_KEY_HEADS) == num_parts == 66
    rows = 2 * num_parts * NUM_HEADS
    assert found["new_empty", rows * 4] == 2
    assert found["new_empty", rows * WIDTH * 4] == 1


@pytest.mark.parametrize("has_padding", [False, True])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_layers_that_are_the_same_run_once(family: str, has_padding: bool) -> None:
    once, each = (
        summarize(
            run_flex(family, has_padding=has_padding, batch_size=2, is_each_layer_run=is_each)
        )
        for is_each in (False, True)
    )
    assert once == each


def test_heads_that_are_too_narrow_are_refused() -> None:
    query = torch.empty((1, 2, 8, 8), device="meta")
    with standing_in_for_flex("flex_attention"), pytest.raises(NotImplementedError, match="16"):
        integration.compile_friendly_flex_attention(query, query, query)


def test_a_model_goes_back_to_torchs_functions_afterwards() -> None:
    module: Any = masking_utils
    before = (module.create_block_mask, integration.compile_friendly_flex_attention)
    with standing_in_for_flex("flex_attention"):
        assert module.create_block_mask is make_block_mask
    assert (module.create_block_mask, integration.compile_friendly_flex_attention) == before
