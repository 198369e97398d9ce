"""The number of experts that a layer chooses is the one that it is seen to choose."""

from __future__ import annotations

from typing import Any

import pytest

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.anatomy.routing.top_k import find_top_k
from tests.anatomy.counting import build_family_skeleton, count_family, prove_family
from tests.families.tiny.configs import build_config
from tests.families.tiny.models import available
from tests.families.tiny.proof import exact_families
from tests.families.tiny.sizes import HIDDEN_SIZE, TOP_K


@pytest.mark.parametrize("name", exact_families())
def test_top_k_is_what_a_running_model_chooses(name: str) -> None:
    proof = prove_family(name)
    recorded = {layer.place.experts_path: layer.recorded.experts.shape[1] for layer in proof.layers}

    found = {layer.experts_path: number for layer, number in count_family(name).top_k.items()}

    assert recorded
    assert {path: found[path] for path in recorded} == recorded


@pytest.mark.parametrize("name", available())
def test_every_layer_of_every_family_tells_its_top_k(name: str) -> None:
    assert None not in count_family(name).top_k.values()


def test_top_k_is_asked_of_the_code_and_not_of_the_configuration() -> None:
    # PhiMoE always chooses two.
    assert build_config("phimoe").num_experts_per_tok == TOP_K
    assert set(count_family("phimoe").top_k.values()) == {2}


def test_a_block_that_tells_nothing_has_an_unknown_top_k() -> None:
    skeleton = build_family_skeleton("gemma4_text")
    layer = find_experts(skeleton).layers[0]
    router = skeleton.get_submodule(f"{layer.block_path}.router")
    block = skeleton.get_submodule(layer.block_path)
    configs: list[Any] = [module.config for module in (router, block)]
    for config in configs:
        config.top_k_experts = None
        # The number of tokens to sample from, which older configurations hold too.
        config.top_k = 50

    try:
        assert find_top_k(skeleton, layer, hidden_size=HIDDEN_SIZE) is None
    finally:
        for config in configs:
            config.top_k_experts = TOP_K
            vars(config).pop("top_k", None)
