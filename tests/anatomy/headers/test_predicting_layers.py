"""Layers that predict further tokens, beyond those of the model."""

from __future__ import annotations

import pytest

from moetool.anatomy.components import Component
from moetool.anatomy.headers.other_tensors import Reason
from tests.anatomy import header_files as layouts
from tests.anatomy.header_files import Tensors
from tests.anatomy.headers.plain_model import (
    ATTENTION,
    CONFIG,
    EXPERTS,
    HIDDEN,
    LAYER,
    NUM_EXPERTS,
    NUM_LAYERS,
    VOCAB,
    count,
    layer,
    linear,
    model,
)


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
