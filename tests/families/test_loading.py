"""Every family's checkpoint is loaded by the right class, with all of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from moetool.anatomy.routing.moe_layers import MoeLayer, find_moe_layers
from moetool.anatomy.skeleton.build import build_skeleton, find_auto_class
from moetool.checkpoint.files import open_checkpoint
from moetool.checkpoint.reference import resolve_model
from moetool.errors import UntraceableError
from moetool.tracing.running.load_model import load_model
from tests.families.quantized_loading import check_packing
from tests.families.tiny.models import available, build_family, text_inputs

Saved = tuple[str, PreTrainedModel, Path]

# Halves of models. They are not published as separate checkpoints.
PARTS = {"deepseek_ocr2_text", "qwen3_omni_moe_talker_text", "unlimited_ocr_text"}

# What is loaded of them for text is the text model alone.
TEXT_ONLY = {
    "dots3_note": "Dots3NoteForCausalLM",
    "llama4": "Llama4ForCausalLM",
}

# transformers overwrites the last of Zaya's balancing biases after it has loaded them.
CHANGED_BY_LOADING = {"zaya"}


@pytest.mark.parametrize("name", sorted(PARTS & set(available())))
def test_a_part_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(UntraceableError, match="no language-model class"):
        find_auto_class(build_family(name).config)


@pytest.fixture(scope="module", params=sorted(available()))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A family's name, its model, and the folder that it is saved in."""
    folder = tmp_path_factory.mktemp("saved")
    model = build_family(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def test_a_saved_model_is_loaded_and_computes_the_same(saved: Saved) -> None:
    name, model, folder = saved
    if name in PARTS:
        return
    checkpoint = open_checkpoint(resolve_model(str(folder)), announce=print)
    config = AutoConfig.from_pretrained(folder)
    loaded = load_model(
        checkpoint, config, auto_class=find_auto_class(config), device_map={"": "cpu"}
    )
    assert type(loaded).__name__ == TEXT_ONLY.get(name, type(model).__name__)
    assert describe(loaded) == describe(build_skeleton(config))
    inputs = text_inputs(name)
    with torch.inference_mode():
        first, second = model(**inputs)[0], loaded(**inputs)[0]
    assert torch.allclose(first, second, atol=1e-4) != (name in CHANGED_BY_LOADING)


def test_a_saved_model_is_packed_as_bitsandbytes_packs_linear_layers_or_refused(
    saved: Saved,
) -> None:
    name, model, folder = saved
    check_packing(name, model, folder)


def describe(model: PreTrainedModel) -> list[MoeLayer] | str:
    """Return a model's routed layers, or why they can't be read: transformers 5.17 has such."""
    try:
        return find_moe_layers(model, allow_inexact=True)
    except UntraceableError as error:
        return str(error)
