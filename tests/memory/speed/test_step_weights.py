"""Bytes and products of a step: by hand, and for every family against other counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.parameters import ActiveDefinition
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from moetool.memory.speed.experts_touched import find_choices
from moetool.memory.speed.step_weights import (
    Arithmetic,
    ParameterRoles,
    ProductFlops,
    ReadBytes,
    count_product_flops,
    count_read_bytes,
)
from moetool.simulation.flops.flops import FlopsPerToken
from tests.families.tiny.models import available
from tests.memory.loaded.packed import Packed, build_in, pack_queries
from tests.simulation.flops.test_flops_of_families import NUM_TOKENS, SIMULATED, count_of_family
from tests.simulation.skeletons import build_family_skeleton

# The tiny Mixtral: 4 layers of width 64, 4 heads of 16, 2 of them for keys and values, 8 experts of
# width 96, top-3; a vocabulary of 256.
NUM_LAYERS, WIDTH, VOCABULARY, EXPERT = 4, 64, 256, 3 * 64 * 96
ATTENTION, ROUTER, NORMS = 64 * 16 * (4 + 2 + 2 + 4), 64 * 8, 2 * 64
HEAD = WIDTH * VOCABULARY

# Relative positions are looked up in a table, which counts as active.
TABLE_OF_POSITIONS = {"switch_transformers": 256}


def roles_in(plain: PreTrainedModel) -> ParameterRoles:
    routed = RoutedSkeleton.of(plain)
    return ParameterRoles(routed, find_choices(routed) or {})


def read_bytes_of(skeleton: PreTrainedModel, plain: PreTrainedModel | None = None) -> ReadBytes:
    return count_read_bytes(skeleton, roles_in(plain or skeleton))


def flops_of(skeleton: PreTrainedModel, plain: PreTrainedModel | None = None) -> ProductFlops:
    choices = find_choices(RoutedSkeleton.of(plain or skeleton)) or {}
    return count_product_flops(skeleton, roles_in(plain or skeleton), choices)


def test_bytes_of_mixtral_by_hand() -> None:
    read = read_bytes_of(build_family_skeleton("mixtral"))
    numbers = NUM_LAYERS * (ATTENTION + ROUTER + NORMS) + WIDTH + HEAD
    assert read.shared == 4 * numbers
    assert set(read.per_expert.values()) == {4 * EXPERT}
    assert read.sum_up({"model.layers.0.mlp.experts": 2.5}) == 4 * numbers + 10 * EXPERT


def test_flops_of_mixtral_by_hand() -> None:
    flops = flops_of(build_family_skeleton("mixtral"))
    in_layers = 2 * NUM_LAYERS * (ATTENTION + ROUTER + 3 * EXPERT)
    assert flops.layers == {Arithmetic.FLOAT32: in_layers}
    assert flops.head == {Arithmetic.FLOAT32: 2 * HEAD}
    total = flops.sum_up(num_tokens=10, num_logits=3)
    assert total[Arithmetic.FLOAT32] == 10 * in_layers + 3 * 2 * HEAD
    assert sum(total.values()) == total[Arithmetic.FLOAT32]


@pytest.mark.parametrize("family", available())
def test_one_token_reads_the_parameters_that_the_table_calls_active(family: str) -> None:
    skeleton = build_family_skeleton(family)
    choices = find_choices(RoutedSkeleton.of(skeleton))
    assert choices
    table = count_skeleton(RoutedSkeleton.of(skeleton), dtype=torch.float32)
    active = table.count_active(ActiveDefinition.WITHOUT_INPUT_EMBEDDING)
    assert active is not None
    touched = {
        layer.experts_path: max(top_k - layer.num_identity_experts, 0)
        for layer, top_k in choices.items()
    }
    read = read_bytes_of(skeleton).sum_up(touched)
    assert read == 4 * (active.fewest - TABLE_OF_POSITIONS.get(family, 0))


@pytest.mark.parametrize("family", sorted(set(available()) - set(SIMULATED)))
def test_a_family_that_cannot_be_simulated_has_a_bound_all_the_same(family: str) -> None:
    """Others of its kind are compared below."""
    skeleton = build_family_skeleton(family)
    assert isinstance(count_of_family(family), str)
    assert sum(flops_of(skeleton).layers.values()) > 0


@pytest.mark.parametrize("family", SIMULATED)
def test_no_family_computes_fewer_flops_than_the_bound_and_few_many_more(family: str) -> None:
    skeleton = build_family_skeleton(family)
    counted = count_of_family(family)
    assert isinstance(counted, FlopsPerToken)
    flops = flops_of(skeleton)
    of_prompt = flops.sum_up(num_tokens=NUM_TOKENS, num_logits=1)
    of_token = flops.sum_up(num_tokens=1, num_logits=1)
    # Latent attention and chunks of linear attention take up to as much again.
    assert 0.5 < sum(of_prompt.values()) / (counted.prefill * NUM_TOKENS) <= 1
    if counted.decode is not None:
        assert 0.5 < sum(of_token.values()) / counted.decode <= 1


def test_a_tied_embedding_is_read_as_the_head() -> None:
    tied = build_family_skeleton("mixtral", tie_word_embeddings=True)
    untied = build_family_skeleton("mixtral")
    assert len(list(tied.parameters())) < len(list(untied.parameters()))
    assert read_bytes_of(tied) == read_bytes_of(untied)
    assert flops_of(tied) == flops_of(untied)


def test_biases_of_experts_are_read_but_not_multiplied() -> None:
    # GPT-OSS has a bias of each expert's two matrices; the first makes gate and up at once.
    skeleton = build_family_skeleton("gpt_oss")
    experts = skeleton.model.layers[0].mlp.experts
    width = experts.down_proj.shape[1]
    matrices, biases = 3 * WIDTH * width, 2 * width + WIDTH
    assert set(read_bytes_of(skeleton).per_expert.values()) == {4 * (matrices + biases)}
    with_biases = flops_of(skeleton)
    for layer in skeleton.model.layers:
        del layer.mlp.experts.gate_up_proj_bias, layer.mlp.experts.down_proj_bias
    assert flops_of(skeleton) == with_biases


def test_an_expert_of_longcat_is_of_as_many_as_each_matrix_is_allocated_for() -> None:
    # One matrix has room for the identity experts; a token that chooses those runs fewer others.
    read, flops = {}, {}
    for num_identity_experts in (1, 4):
        skeleton = build_family_skeleton("longcat_flash", zero_expert_num=num_identity_experts)
        read[num_identity_experts] = set(read_bytes_of(skeleton).per_expert.values())
        flops[num_identity_experts] = sum(flops_of(skeleton).layers.values())
    expert, num_layers = 3 * WIDTH * 40, 2
    assert read == {1: {4 * expert}, 4: {4 * expert}}
    scored_in_vain = 3 * WIDTH
    assert flops[1] - flops[4] == 2 * num_layers * (2 * expert - scored_in_vain)


def test_an_expert_of_dbrx_has_its_share_of_rows_to_itself() -> None:
    skeleton = build_family_skeleton("dbrx")
    rows = skeleton.get_parameter("transformer.blocks.0.ffn.experts.mlp.w1").shape[0]
    assert set(read_bytes_of(skeleton).per_expert.values()) == {4 * 3 * WIDTH * rows / 8}


@pytest.mark.parametrize(
    ("dtype", "arithmetic"),
    [(torch.uint8, Arithmetic.FLOAT16), (torch.int8, Arithmetic.INT8)],
)
def test_packed_weights_are_read_as_held_and_multiplied_as_many(
    dtype: torch.dtype, arithmetic: Arithmetic
) -> None:
    plain, packed = (build_in("mixtral", torch.bfloat16) for _ in range(2))
    pack_queries(packed, dtype=dtype, num_scales=5)
    queries = WIDTH * WIDTH
    held = queries * (1 if dtype is torch.int8 else 0.5) + 5 * 4
    saved = NUM_LAYERS * (2 * queries - held)
    assert read_bytes_of(plain).shared - read_bytes_of(packed, plain).shared == saved
    flops = flops_of(packed, plain)
    assert sum(flops.layers.values()) == sum(flops_of(plain).layers.values())
    if arithmetic is Arithmetic.INT8:
        assert flops.layers[arithmetic] == 2 * NUM_LAYERS * queries
    else:
        assert set(flops.layers) == {Arithmetic.FLOAT16}


@pytest.mark.parametrize(
    ("dtype", "arithmetic"),
    [(torch.uint8, Arithmetic.FLOAT16), (torch.int8, Arithmetic.INT8)],
)
def test_packed_experts_are_divided_among_them_wherever_their_parts_are_held(
    dtype: torch.dtype, arithmetic: Arithmetic
) -> None:
    plain, packed = (build_in("mixtral", torch.bfloat16) for _ in range(2))
    for layer in packed.model.layers:
        experts = layer.mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            linear = nn.Linear(1, 1)
            linear.weight = experts.get_parameter(name)
            delattr(experts, name)
            experts.add_module(f"packed_{name}", Packed(linear, dtype=dtype, num_scales=16))
    read = read_bytes_of(packed, plain)
    held = EXPERT * (1 if dtype is torch.int8 else 0.5) + 2 * 16 * 4 / 8
    assert set(read.per_expert.values()) == {held}
    assert read.shared == read_bytes_of(plain).shared
    flops = flops_of(packed, plain)
    assert flops.layers[arithmetic] >= 2 * NUM_LAYERS * 3 * EXPERT
    assert sum(flops.layers.values()) == sum(flops_of(plain).layers.values())


def test_weights_in_fp8_are_multiplied_in_fp8_and_their_scales_are_not() -> None:
    skeleton = build_in("mixtral", torch.bfloat16)
    before = read_bytes_of(skeleton).shared
    for layer in skeleton.model.layers:
        linear = layer.self_attn.q_proj
        linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
        linear.weight_scale_inv = nn.Parameter(torch.empty(1, 3, device="meta"))
    flops = flops_of(skeleton).layers
    queries = WIDTH * WIDTH
    assert flops[Arithmetic.FP8] == 2 * NUM_LAYERS * queries
    others = NUM_LAYERS * (ATTENTION - queries + ROUTER + 3 * EXPERT)
    assert flops == {Arithmetic.FP8: flops[Arithmetic.FP8], Arithmetic.FLOAT16: 2 * others}
    scales = 3 * 4
    assert read_bytes_of(skeleton).shared == before - NUM_LAYERS * (queries - scales)


def test_parts_of_a_packed_weight_are_read_where_a_module_of_their_own_holds_them() -> None:
    plain, packed = (build_in("mixtral", torch.bfloat16) for _ in range(2))
    queries = packed.model.layers[0].self_attn.q_proj
    linear = nn.Linear(1, 1)
    linear.weight = queries.weight
    del queries.weight
    queries.add_module("packed", Packed(linear, dtype=torch.uint8, num_scales=5))
    saved = WIDTH * WIDTH * 1.5 - 5 * 4
    assert read_bytes_of(plain).shared - read_bytes_of(packed, plain).shared == saved


def test_buffers_of_plain_modules_are_not_read() -> None:
    skeleton = build_family_skeleton("mixtral")
    before = read_bytes_of(skeleton)
    skeleton.model.layers[0].self_attn.register_buffer("mask", torch.empty(1000, device="meta"))
    assert read_bytes_of(skeleton) == before
