"""No dense model is taken for a Mixture of Experts, and no Mixture of Experts is missing here."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel, PreTrainedConfig

from moetool.anatomy.routing.moe_layers import find_moe_layers
from moetool.anatomy.skeleton.build import created_on
from moetool.errors import DenseModelError, UntraceableError
from tests.families.tiny.families import FAMILIES

# Wrappers around, and text halves of, families that are proven under another name.
PROVEN_UNDER_ANOTHER_NAME = {
    "glm4v_moe_text",
    "glm5_next_text",
    "hy_v4_vl_text",
    "inkling2",
    "inkling2_loop",
    "inkling_mm_model",
    "mistral_large4_text",
    "muse_spark_text",
    "nemo_speechlm",
    "qwen3_5_moe",
    "qwen3_vl_moe_text",
}

# By default these are dense.
DENSE_BY_DEFAULT = {"doge", "gemma4", "gemma4_text"}

# Layers differ by kind, not by number; few make the test quick.
NUM_LAYERS = 4
DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "depth", "n_layer")


def is_routed(model_type: str) -> bool | None:
    """Return whether moetool finds experts in a model type's default; None if it has none."""
    skeleton = build_default(model_type, num_layers=NUM_LAYERS) or build_default(model_type)
    if skeleton is None:
        return None
    try:
        return bool(find_moe_layers(skeleton, allow_inexact=True))
    except DenseModelError:
        return False
    except UntraceableError:
        return True


def build_default(model_type: str, num_layers: int | None = None) -> torch.nn.Module | None:
    """Return a model type's default on the meta device, if transformers can build it."""
    try:
        config = CONFIG_MAPPING[model_type]()
        if num_layers is not None:
            shorten(config, num_layers)
        if type(config) not in MODEL_MAPPING:
            return None
        with created_on("meta"):
            model: torch.nn.Module = AutoModel.from_config(config)
    except Exception:  # noqa: BLE001 - a default that can't be built is of another's making.
        return None
    return model


def shorten(config: PreTrainedConfig, num_layers: int) -> None:
    """Give a configuration, and those inside it, fewer layers."""
    inner = (getattr(config, name, None) for name in type(config).sub_configs)
    for part in (config, *(item for item in inner if isinstance(item, PreTrainedConfig))):
        for name in DEPTHS:
            depth = getattr(part, name, None)
            if isinstance(depth, int) and depth > num_layers:
                setattr(part, name, num_layers)


@pytest.fixture(scope="module")
def routed() -> dict[str, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {model_type: is_routed(model_type) for model_type in CONFIG_MAPPING}
    return {model_type: value for model_type, value in found.items() if value is not None}


def test_experts_are_found_in_the_families_of_this_suite_and_in_no_other_model(
    routed: dict[str, bool],
) -> None:
    assert len(routed) > 450
    known = set(FAMILIES) | PROVEN_UNDER_ANOTHER_NAME
    assert {name for name, value in routed.items() if value} <= known
    assert {name for name, value in routed.items() if not value} & known <= DENSE_BY_DEFAULT
