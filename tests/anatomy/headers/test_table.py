"""The parameter table of a checkpoint by its headers, and the tensors that are not in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.anatomy.components import Component
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.stored_tensors import Role, read_stored
from moetool.anatomy.parameters import ActiveDefinition
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors, make_headers
from tests.anatomy.headers.plain_model import (
    CONFIG,
    EXPERTS,
    HIDDEN,
    INNER,
    NUM_EXPERTS,
    NUM_LAYERS,
    TOTAL,
    VOCAB,
    count,
    linear,
    model,
)


def test_a_plain_checkpoint_holds_nothing_but_the_model() -> None:
    found = count(model())

    assert found.other_tensors == ()
    assert found.table.total == TOTAL
    assert found.num_layers == NUM_LAYERS
    assert found.num_experts == {("decoder", 0): NUM_EXPERTS, ("decoder", 1): NUM_EXPERTS}
    assert found.dtype_bytes == {"bfloat16": 2 * TOTAL}
    active = found.table.count_active(ActiveDefinition.ALL)
    assert active is not None
    assert active.exact == TOTAL - NUM_LAYERS * EXPERTS // 2


LEFT_OVERS: dict[str, tuple[Reason, Tensors]] = {
    "lora": (
        Reason.ADAPTERS,
        {
            "model.layers.0.self_attn.q_proj.lora_A.default.weight": ("F32", [8, HIDDEN]),
            "model.layers.0.self_attn.q_proj.lora_B.default.weight": ("F32", [HIDDEN, 8]),
            "model.embed_tokens.lora_embedding_A.default": ("F32", [8, VOCAB]),
        },
    ),
    "an optimizer's": (
        Reason.OPTIMIZER,
        {
            "optimizer.state.3.exp_avg": ("F32", [HIDDEN, HIDDEN]),
            "model.layers.0.self_attn.q_proj.weight.exp_avg_sq": ("F32", [HIDDEN, HIDDEN]),
        },
    ),
    "frequencies": (
        Reason.BUFFERS,
        {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": ("F32", [8]) for n in range(2)},
    ),
    "biases that select experts": (
        Reason.BUFFERS,
        {"model.layers.1.mlp.gate.e_score_correction_bias": ("F32", [NUM_EXPERTS])},
    ),
    "scales of a KV cache": (
        Reason.SCALES,
        {f"model.layers.0.self_attn.{x}_proj.{x}_scale": ("F32", []) for x in "kv"},
    ),
}


def test_a_bias_that_selects_experts_is_its_routers() -> None:
    _, tensors = LEFT_OVERS["biases that select experts"]

    (group,) = count({**model(), **tensors}).other_tensors

    assert group.components == {Component.ROUTER: NUM_EXPERTS}


@pytest.mark.parametrize("name", LEFT_OVERS)
def test_what_is_no_part_of_a_model_is_left_out_with_its_reason(name: str) -> None:
    reason, tensors = LEFT_OVERS[name]

    found = count({**model(), **tensors})

    assert found.table == count(model()).table
    (group,) = found.other_tensors
    assert group.reason is reason
    assert group.num_tensors == len(tensors)
    assert group.num_params == sum(group.components.values())
    assert group.num_params == sum(t.num_elements for t in make_headers(tensors).tensors)
    assert group.num_bytes == sum(t.num_bytes for t in make_headers(tensors).tensors)
    assert group.example in tensors


@pytest.mark.parametrize("is_tied", [True, False, None])
def test_a_head_beside_the_embedding_that_it_is_tied_to_is_no_second_one(
    is_tied: bool | None,
) -> None:
    """As Granite's and Gemma's files hold it. Without a statement the files' word stands."""
    stated = {} if is_tied is None else {"tie_word_embeddings": is_tied}

    found = count(model(), {**CONFIG, **stated})

    assert found.table.total == TOTAL - (VOCAB * HIDDEN if is_tied else 0)
    assert [group.reason for group in found.other_tensors] == (
        [Reason.TIED_HEAD] if is_tied else []
    )
    assert found.table.is_tied is bool(is_tied)


def test_the_embedding_that_two_stacks_share_counts_once() -> None:
    """As older encoder-decoder checkpoints hold it."""
    names = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    tensors = {name: t for stem in names for name, t in linear(stem, VOCAB, HIDDEN).items()}

    found = count(tensors, {})

    assert found.table.total == VOCAB * HIDDEN
    (group,) = found.other_tensors
    assert (group.reason, group.num_tensors) == (Reason.SHARED_EMBEDDING, 2)
    # Of another size it is none of them.
    tensors["encoder.embed_tokens.weight"] = ("BF16", [VOCAB, 32])
    assert count(tensors, {}).table.total == VOCAB * HIDDEN + VOCAB * 32


def test_experts_stored_one_by_one_and_stacked_count_alike() -> None:
    stacked, mixtral = model(), model()
    for number in range(NUM_LAYERS):
        old = f"model.layers.{number}.mlp"
        for name in [name for name in stacked if name.startswith(f"{old}.experts.")]:
            del stacked[name]
        stacked[f"{old}.experts.gate_up_proj"] = ("BF16", [NUM_EXPERTS, 2 * INNER, HIDDEN])
        stacked[f"{old}.experts.down_proj"] = ("BF16", [NUM_EXPERTS, HIDDEN, INNER])
    words = {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for old_word, word in words.items():
        mixtral = {name.replace(f".{old_word}.", f".{word}."): t for name, t in mixtral.items()}

    expected = count(model())
    for tensors in (stacked, mixtral):
        found = count(tensors)
        assert found.table.count_components() == expected.table.count_components()
        assert found.num_experts == expected.num_experts
        counts = [
            table.count_active(ActiveDefinition.ALL) for table in (found.table, expected.table)
        ]
        assert counts[0] == counts[1]


def test_what_the_experts_of_a_layer_share_is_run_whole() -> None:
    plain = count(model()).table.count_active(ActiveDefinition.ALL)

    found = count({**model(), "model.layers.0.mlp.experts.common_scale": ("BF16", [HIDDEN])})

    active = found.table.count_active(ActiveDefinition.ALL)
    assert plain is not None
    assert active is not None
    assert (active.exact or 0) - (plain.exact or 0) == HIDDEN


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_experts_per_tok": None}, "does not state how many experts"),
        ({"num_experts_per_tok": True}, "does not state how many experts"),
        ({"num_experts_per_tok": [2, 2]}, "does not state how many experts"),
        ({"moe_topk": 3}, "does not state how many experts"),
        ({"num_local_experts": 8}, "different numbers of experts"),
        ({"zero_expert_num": 2}, "experts without weights"),
        (
            {"model_type": "phimoe", "num_experts_per_tok": 3},
            "another number of experts than config.json states",
        ),
        ({"model_type": "diffusion_gemma"}, "another number of experts than config.json states"),
    ],
)
def test_active_parameters_are_unknown_where_the_configuration_leaves_doubt(
    changed: dict[str, object], words: str
) -> None:
    found = count(model(), {**CONFIG, **changed})

    assert found.active_unknown is not None
    assert words in found.active_unknown
    assert found.top_k is None
    assert found.table.count_active(ActiveDefinition.ALL) is None
    assert found.table.total == TOTAL


def test_places_of_uncounted_tensors_are_known() -> None:
    name = "model.layers.1.self_attn.q_proj"
    tensors = {**model(), **layouts.hqq(name, HIDDEN, HIDDEN)}
    del tensors[f"{name}.weight"]

    found = count(tensors)

    (place,) = found.uncounted
    assert (place.layer, place.component) == (1, Component.MIXER)
    assert found.unknown is not None
    assert found.table.total == TOTAL - HIDDEN * HIDDEN


def test_numbers_of_thousands_of_digits_are_no_layers() -> None:
    found = count({f"model.layers.{'9' * 5000}.self_attn.q_proj.weight": ("BF16", [4, 4])})

    assert (found.table.total, found.num_layers) == (16, 0)


words = st.sampled_from(
    [
        "model",
        "layers",
        "0",
        "1",
        "2",
        "61",
        "mlp",
        "experts",
        "gate",
        "gate_proj",
        "self_attn",
        "q_proj",
        "weight",
        "bias",
        "lm_head",
        "embed_tokens",
        "mtp",
        "eh_proj",
        "vision_tower",
        "norm",
        "weight_scale_inv",
        "shared_experts",
        "encoder",
        "lora_A",
    ]
)
shapes = st.lists(st.integers(0, 5), max_size=3)
texts = st.none() | st.booleans() | st.integers(-2, 70) | st.text(max_size=3)


@given(
    named=st.dictionaries(
        st.lists(words, min_size=1, max_size=7).map(".".join),
        st.tuples(st.sampled_from(["BF16", "F8_E4M3", "F32"]), shapes),
        max_size=12,
    ),
    config=st.dictionaries(
        st.sampled_from([*CONFIG, "tie_word_embeddings", "num_nextn_predict_layers", "model_type"]),
        texts,
    ),
)
def test_every_parameter_of_the_files_is_counted_once(
    named: Tensors, config: dict[str, object]
) -> None:
    found = count(named, config)

    stored = read_stored(make_headers(named).tensors, config)
    in_files = sum(t.num_params or 0 for t in stored if t.role is Role.PARAMETER)
    left_out = sum(group.num_params for group in found.other_tensors if group.are_parameters)
    assert found.table.total + left_out == in_files
    assert sum(found.table.count_components().values()) == found.table.total
    assert sum(found.dtype_bytes.values()) == sum(t.header.num_bytes for t in stored)
