"""The way in which layers choose their experts is described as the running models do it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from packaging.version import Version

from moetool.anatomy.routing.routing_style import RoutingStyle, find_routing_style
from moetool.errors import UntraceableError
from moetool.tracing.windows.probabilities import find_score_function
from tests.anatomy.counting import count_family, prove_family
from tests.families.tiny.proof import exact_families
from tests.families.tiny.sizes import HIDDEN_SIZE

# Their routers scale the normalised weights by a learned number of each expert.
SCALE_EVERY_EXPERT = ("gemma4", "gemma4_text", "diffusion_gemma")

# JetMoE's block itself holds its experts, and PhiMoE's sparse mixer has its own kind of weights.
NOT_INFERRED = ("jetmoe", "phimoe")

# Inferred even where the trace's probabilities are refused: DBRX's router shows no scores outside
# of its block, and roots of softplus are not probabilities.
TOLD_ALL_THE_SAME = {"dbrx": "softmax", "deepseek_v4": "sqrt(softplus)"} | dict.fromkeys(
    SCALE_EVERY_EXPERT, "softmax"
)


# Their routers are other ones before transformers 5.23, see docs/models/families.md.
IS_OLDER = Version(transformers.__version__) < Version("5.23")
CHANGED = ("jamba", "longcat_flash", "switch_transformers")
FAMILIES = [name for name in exact_families() if not (IS_OLDER and name in CHANGED)]

KNOWN = {
    "mixtral": RoutingStyle("softmax", True, 1.0, False, 1, 1, False, None),
    "olmoe": RoutingStyle("softmax", False, 1.0, False, 1, 1, False, None),
    "deepseek_v3": RoutingStyle("sigmoid", True, 2.5, True, 2, 1, False, None),
    "deepseek_v2": RoutingStyle("softmax", False, 1.0, False, 2, 1, False, None),
    "deepseek_v4": RoutingStyle("sqrt(softplus)", True, 1.5, True, 1, 1, False, None),
    "gpt_oss": RoutingStyle("softmax", True, 1.0, False, 1, 1, False, None),
    "llama4_text": RoutingStyle("sigmoid", False, 1.0, False, 1, 1, False, None),
    "longcat_flash": RoutingStyle("softmax", False, 6.0, True, 1, 1, False, None),
    "switch_transformers": RoutingStyle("softmax", False, 1.0, False, 1, 1, False, 2),
}


@cache
def style_of(name: str, index: int = -1) -> RoutingStyle:
    family = count_family(name)
    layers = [layer for layer in family.layers if layer.stack == "decoder"] or family.layers
    return find_routing_style(family.skeleton, layers[index], hidden_size=HIDDEN_SIZE)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_score_function_is_that_which_explains_the_recorded_weights(name: str) -> None:
    recorded = prove_family(name).layers[-1].recorded
    function: str | None
    try:
        function = find_score_function(recorded).name
    except UntraceableError:
        function = TOLD_ALL_THE_SAME.get(name)

    scores = style_of(name).scores

    assert scores == (None if name in NOT_INFERRED else function)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_normalised_if_those_of_every_recorded_token_add_up_alike(name: str) -> None:
    style = style_of(name)
    if name in (*NOT_INFERRED, *SCALE_EVERY_EXPERT):
        assert style.is_normalized is (None if name in NOT_INFERRED else True)
        return
    weights = prove_family(name).layers[-1].weights
    sums = weights.sum(dim=1)

    is_alike = bool((sums - sums.median()).abs().max() < 1e-3 * sums.median())

    # Inkling's shared experts take part in the sum, and their part differs from token to token.
    assert style.is_normalized is (None if name == "inkling_text" else is_alike)
    if is_alike:
        assert style.scale == pytest.approx(float(sums.median()), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in KNOWN if name in FAMILIES])
def test_known_routers_are_described_as_they_are(name: str) -> None:
    assert style_of(name) == KNOWN[name]


def test_layers_that_look_experts_up_by_token_are_recognised() -> None:
    first = style_of("deepseek_v4", 0)

    assert (first.is_hashed, first.has_selection_bias) == (True, False)
    assert not style_of("deepseek_v4").is_hashed


def test_describing_leaves_a_skeleton_and_the_random_state_as_they_were() -> None:
    family = count_family("deepseek_v3")
    state = torch.get_rng_state()

    find_routing_style(family.skeleton, family.layers[0], hidden_size=HIDDEN_SIZE)

    assert torch.equal(torch.get_rng_state(), state)
    assert {tensor.device.type for tensor in family.skeleton.state_dict().values()} == {"meta"}
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in family.skeleton.modules()
    )
