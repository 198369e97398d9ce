"""The parameter table of a checkpoint by its headers, and the tensors that are not in it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.anatomy.components import Component
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.stored_tensors import Role, read_stored
from moetool.anatomy.headers.table import HeaderTable, count_headers
from moetool.anatomy.parameters import ActiveDefinition
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors, make_headers

HIDDEN, INNER, VOCAB, NUM_LAYERS, NUM_EXPERTS = 64, 96, 256, 2, 4
CONFIG: dict[str, object] = {
    "num_hidden_layers": NUM_LAYERS,
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
}
ATTENTION = 4 * HIDDEN * HIDDEN
EXPERTS = NUM_EXPERTS * 3 * HIDDEN * INNER
LAYER = ATTENTION + EXPERTS + NUM_EXPERTS * HIDDEN + 2 * HIDDEN


def linear(name: str, outputs: int, inputs: int) -> Tensors:
    return layouts.plain(name, outputs, inputs)


def layer(prefix: str) -> Tensors:
    """Return the tensors of a routed layer."""
    tensors: Tensors = {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors |= linear(f"{prefix}.self_attn.{name}", HIDDEN, HIDDEN)
    for expert in range(NUM_EXPERTS):
        for name in ("gate_proj", "up_proj"):
            tensors |= linear(f"{prefix}.mlp.experts.{expert}.{name}", INNER, HIDDEN)
        tensors |= linear(f"{prefix}.mlp.experts.{expert}.down_proj", HIDDEN, INNER)
    tensors |= linear(f"{prefix}.mlp.gate", NUM_EXPERTS, HIDDEN)
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}.{name}.weight"] = ("BF16", [HIDDEN])
    return tensors


def model() -> Tensors:
    """Return the tensors of a small model."""
    tensors = linear("model.embed_tokens", VOCAB, HIDDEN) | linear("lm_head", VOCAB, HIDDEN)
    tensors["model.norm.weight"] = ("BF16", [HIDDEN])
    for number in range(NUM_LAYERS):
        tensors |= layer(f"model.layers.{number}")
    return tensors


TOTAL = 2 * VOCAB * HIDDEN + HIDDEN + NUM_LAYERS * LAYER


def count(tensors: Tensors, config: Mapping[str, object] = CONFIG) -> HeaderTable:
    return count_headers(make_headers(tensors), config)


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


def mixing(prefix: str) -> Tensors:
    """Return what mixes the next token in, as DeepSeek-V3 names it."""
    return {
        **linear(f"{prefix}.eh_proj", HIDDEN, 2 * HIDDEN),
        f"{prefix}.enorm.weight": ("BF16", [HIDDEN]),
        f"{prefix}.hnorm.weight": ("BF16", [HIDDEN]),
    }


MIXING = 2 * HIDDEN * HIDDEN + 2 * HIDDEN

# As the files of published models name such layers, and the parameters that they add.
PREDICTING: dict[str, tuple[Tensors, int]] = {
    "deepseek-v3 and glm-4.5": (
        {
            **layer("model.layers.2"),
            **mixing("model.layers.2"),
            **linear("model.layers.2.embed_tokens", VOCAB, HIDDEN),
            **linear("model.layers.2.shared_head.head", VOCAB, HIDDEN),
            "model.layers.2.shared_head.norm.weight": ("BF16", [HIDDEN]),
        },
        LAYER + MIXING + 2 * VOCAB * HIDDEN + HIDDEN,
    ),
    "deepseek-v4": (
        {**layer("mtp.0"), **linear("mtp.0.e_proj", HIDDEN, HIDDEN)},
        LAYER + HIDDEN * HIDDEN,
    ),
    "qwen3-next": (
        {
            **layer("mtp.layers.0"),
            **linear("mtp.fc", HIDDEN, 2 * HIDDEN),
            "mtp.pre_fc_norm_embedding.weight": ("BF16", [HIDDEN]),
            "mtp.norm.weight": ("BF16", [HIDDEN]),
        },
        LAYER + MIXING,
    ),
    "mimo": ({**layer("model.mtp.layers.0"), **mixing("model.mtp.layers.0")}, LAYER + MIXING),
    "mimo-7b": ({**layer("model.mtp_layers.0")}, LAYER),
    "ernie-4.5": (
        {**layer("model.mtp_block.0"), **linear("model.mtp_linear_proj.0", HIDDEN, 2 * HIDDEN)},
        LAYER + 2 * HIDDEN * HIDDEN,
    ),
    "nemotron": ({**layer("mtp.layers.0"), **mixing("mtp.layers.0")}, LAYER + MIXING),
    "step, three in a row": (
        {
            name: tensor
            for number in (2, 3, 4)
            for name, tensor in {
                **layer(f"model.layers.{number}"),
                **mixing(f"model.layers.{number}"),
                **linear(f"model.layers.{number}.transformer.shared_head.output", VOCAB, HIDDEN),
            }.items()
        },
        3 * (LAYER + MIXING + VOCAB * HIDDEN),
    ),
}


@pytest.mark.parametrize("name", PREDICTING)
def test_layers_that_predict_further_tokens_are_not_taken_for_the_models_own(name: str) -> None:
    tensors, num_params = PREDICTING[name]
    plain, found = count(model()), count({**model(), **tensors})

    assert found.table == plain.table
    assert found.num_layers == NUM_LAYERS
    (group,) = found.other_tensors
    assert group.reason is Reason.MTP
    assert (group.num_tensors, group.num_params) == (len(tensors), num_params)
    assert group.components[Component.ROUTED_EXPERTS] % EXPERTS == 0
    assert group.components[Component.MIXER] % ATTENTION == 0


def test_the_copies_in_a_layer_that_predicts_are_those_of_the_embedding_and_the_head() -> None:
    tensors, _ = PREDICTING["deepseek-v3 and glm-4.5"]

    (group,) = count({**model(), **tensors}).other_tensors

    assert group.components == {
        Component.EMBEDDING: VOCAB * HIDDEN,
        Component.LM_HEAD: VOCAB * HIDDEN,
        Component.MIXER: ATTENTION,
        Component.ROUTER: NUM_EXPERTS * HIDDEN,
        Component.ROUTED_EXPERTS: EXPERTS,
        Component.NORM: 5 * HIDDEN,
        Component.OTHER: 2 * HIDDEN * HIDDEN,
    }


def test_layers_beyond_the_models_own_predict_only_if_something_says_so() -> None:
    tensors = {**model(), **layer("model.layers.2")}

    (unsaid,) = count(tensors).other_tensors
    (stated,) = count(tensors, {**CONFIG, "num_nextn_predict_layers": 1}).other_tensors

    assert unsaid.reason is Reason.BEYOND
    assert stated.reason is Reason.MTP
    assert unsaid.num_params == stated.num_params == LAYER


def test_scales_of_layers_that_predict_are_none_of_their_parameters() -> None:
    tensors: Tensors = {
        **mixing("model.layers.2"),
        **layouts.fp8_blocks("model.layers.2.mlp.up_proj", 256, 256),
    }

    (group,) = count({**model(), **tensors}).other_tensors

    assert group.num_params == MIXING + 256 * 256


def test_layers_of_a_tower_are_not_beyond_the_text_models() -> None:
    found = count({**model(), **linear("vision_tower.layers.7.attn.q_proj", HIDDEN, HIDDEN)})

    assert found.other_tensors == ()
    assert found.table.count_components()[Component.VISION] == HIDDEN * HIDDEN
    # Neither are those of the same number as one that is.
    tensors, num_params = PREDICTING["deepseek-v3 and glm-4.5"]
    tower = linear("vision_tower.layers.2.attn.q_proj", HIDDEN, HIDDEN)
    found = count({**model(), **tensors, **tower})
    assert [group.num_params for group in found.other_tensors] == [num_params]


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
