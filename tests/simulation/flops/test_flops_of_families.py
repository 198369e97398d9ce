"""Every family's FLOPs: with and without the shortcut, and as torch counts them on the CPU."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moetool.anatomy.caches import find_caches, name_fields
from moetool.simulation.flops.flops import CantSimulate, FlopsPerToken, count_flops
from tests.families.tiny.models import available, build_family
from tests.simulation.skeletons import (
    build_family_skeleton,
    count_steps,
    deepen,
)

NUM_TOKENS = 24

# They read which experts or keys were chosen, and loop over those.
NEED_DATA = {
    "dbrx",
    "glm5_next",
    "jetmoe",
    "longcat_flash",
    "nllb-moe",
    "qwen4_exp_text",
    "step3p7",
    "switch_transformers",
}
NEED_MORE_THAN_TOKENS = {"diffusion_gemma", "qwen3_omni_moe_talker_text"}
SIMULATED = [name for name in available() if name not in NEED_DATA | NEED_MORE_THAN_TOKENS]

# Each layer of Beam numbers its own residuals, each of Mistral Large 4 names the layer whose keys it
# uses: no two are built the same. Each of Inkling's looped model is given one state more.
ALL_DIFFERENT = {"beam", "inkling2_loop_text", "mistral_large4"}
# Their number of layers is not that of the tiny families, or follows from another field.
NOT_DEEPENED = {"nemotron_h", "nemotron_h_omni", "zaya"}

# Their experts are rows of embeddings, in one product with other things.
UNKNOWN_EXPERTS = {"doge"}
# They keep no cache.
NOT_DECODING = {"openai_privacy_filter"}
WITH_EXPERTS = [name for name in SIMULATED if name not in UNKNOWN_EXPERTS | NOT_DECODING]

# None of these is a product: data is moved, made, compared, or processed element by element.
NAMES_OF_NO_PRODUCTS = """
    _local_scalar_dense _softmax _to_copy _unsafe_view abs add add_ alias all amax arange
    bitwise_and bitwise_not bitwise_or cat clamp clamp_min clone constant_pad_nd copy_ cos cumsum
    detach detach_ div div_ embedding empty empty_like empty_strided eq exp expand eye flip floor
    floor_divide full full_like gather ge gelu gt histc index index_put_ index_select le lift_fresh
    linalg_vector_norm log log1p log_sigmoid_forward logsumexp lt masked_fill max mean mul mul_
    native_layer_norm ne neg new_empty new_full new_ones new_zeros ones ones_like permute polar pow
    reciprocal relu repeat rsqrt rsub scalar_tensor scatter scatter_ select set_ sigmoid silu sin slice
    softplus sort split split_with_sizes sqrt squeeze stack sub sum t tanh topk transpose tril triu
    unbind unfold unsqueeze view view_as_complex view_as_real where zeros zeros_like
"""


@cache
def count_of_family(family: str) -> FlopsPerToken | str:
    """Return a family's FLOPs, or the reason why they are unknown."""
    try:
        return count_flops(build_family_skeleton(family), num_prompt_tokens=NUM_TOKENS)
    except CantSimulate as error:
        return error.reason


def test_families_that_cannot_be_simulated_are_known_and_say_why() -> None:
    counts = {name: count_of_family(name) for name in available()}
    reasons = {name: count for name, count in counts.items() if isinstance(count, str)}
    assert set(reasons) == (NEED_DATA | NEED_MORE_THAN_TOKENS) & set(available())
    for name in set(reasons) & NEED_DATA:
        assert reasons[name].startswith("its forward needs data: it "), name


@pytest.mark.parametrize("family", SIMULATED)
def test_layers_run_once_count_like_layers_run_each_time_and_no_product_is_missed(
    family: str,
) -> None:
    deeper = deepen(family)
    assert bool(deeper) == (family not in NOT_DEEPENED)
    skeleton = build_family_skeleton(family, **deeper)
    in_full = count_steps(skeleton, num_prompt_tokens=NUM_TOKENS, is_each_layer_run=True)
    shortened = count_steps(skeleton, num_prompt_tokens=NUM_TOKENS, is_each_layer_run=False)
    assert shortened.flops == in_full.flops
    assert shortened.kept == in_full.kept
    # In prefill and in decoding.
    assert shortened.num_repeated >= (6 if deeper and family not in ALL_DIFFERENT else 0)
    # No product goes uncounted.
    assert {name.removeprefix("aten.") for name in in_full.uncounted} <= set(
        NAMES_OF_NO_PRODUCTS.split()
    )


@pytest.mark.parametrize("family", SIMULATED)
def test_the_meta_device_takes_what_torch_counts_on_the_cpu(family: str) -> None:
    counted, seen = count_of_family(family), _count_on_cpu(family)
    assert isinstance(counted, FlopsPerToken)
    assert counted.prefill * NUM_TOKENS == seen[0]
    assert counted.decode == (seen[1] if len(seen) > 1 else None)
    assert (counted.decode is None) == (family in NOT_DECODING)


def _count_on_cpu(family: str) -> list[int]:
    """Return the counts of torch's own counter in a real model that runs its experts one by one.

    It has formulas for the products that attention is made of, but not for attention on the CPU,
    and none for solving triangular systems.
    """
    model = build_family(family)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    tokens = torch.randint(3, 256, (1, NUM_TOKENS + 1), generator=torch.Generator().manual_seed(0))
    counts = []
    # In inference mode the counter would take composite operations apart in Python, which is slow.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with _torch_counter() as counter:
            output = model(input_ids=tokens[:, :NUM_TOKENS], **options)
        counts.append(counter.get_total_flops())
        found = find_caches(name_fields(output))
        if found:
            with _torch_counter() as counter:
                model(input_ids=tokens[:, NUM_TOKENS:], **found, **options)
            counts.append(counter.get_total_flops())
    return counts


def _torch_counter() -> FlopCounterMode:
    def count_solve(matrix: list[int], right: list[int], **_: object) -> int:
        return math.prod(right) * matrix[-1]

    solve = torch.ops.aten.linalg_solve_triangular
    return FlopCounterMode(display=False, custom_mapping={solve: count_solve})


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_experts_take_the_same_grouped_and_batched(family: str) -> None:
    """Those of the prompt are grouped, those of decoding batched, as on a GPU."""
    counted = count_of_family(family)
    assert isinstance(counted, FlopsPerToken)
    assert counted.experts_prefill == counted.experts_decode
    assert counted.experts_decode


@pytest.mark.parametrize("family", [name for name in SIMULATED if name not in WITH_EXPERTS])
def test_the_other_families_do_not_decode_or_their_experts_are_unknown(family: str) -> None:
    counted = count_of_family(family)
    assert isinstance(counted, FlopsPerToken)
    assert (counted.decode is None) == (family in NOT_DECODING)
    assert (counted.experts_prefill is None) == (family in UNKNOWN_EXPERTS)
