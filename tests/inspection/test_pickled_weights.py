"""A model is counted alike in safetensors and in the files of torch.save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moetool.inspection.inspect import inspect_model
from tests.tiny_models import build_model

FAMILIES = ("mixtral", "deepseek_v3", "gpt_oss")


def save_both_ways(family: str, folder: Path) -> tuple[Path, Path]:
    """Save a model in both formats, under the names of its modules."""
    model = build_model(family, tie_word_embeddings=True)
    plain, pickled = folder / "plain", folder / "pickled"
    for each in (plain, pickled):
        each.mkdir()
        (each / "config.json").write_text(json.dumps(model.config.to_dict()))
    state = model.state_dict()
    torch.save(state, pickled / "pytorch_model.bin")
    # safetensors takes a tied head only once.
    del state["lm_head.weight"]
    save_file(state, plain / "model.safetensors")
    return plain, pickled


def describe(folder: Path, source: str) -> dict[str, Any]:
    found = inspect_model(folder, source=source).to_dict(per_layer=True)
    del found["model"]
    # The two formats have headers of different lengths.
    del found["files"]["num_bytes"]
    # Nor do they keep tensors in the same order.
    found["rows"].sort(key=lambda row: (row["stack"], row["layer"] or 0, row["component"]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_both_formats_give_the_same_answers(family: str, tmp_path: Path) -> None:
    plain, pickled = save_both_ways(family, tmp_path)

    assert describe(pickled, "headers") == describe(plain, "headers")


def test_both_formats_differ_from_the_skeleton_alike(tmp_path: Path) -> None:
    plain, pickled = save_both_ways("mixtral", tmp_path)

    found = describe(pickled, "auto")

    assert found == describe(plain, "auto")
    assert found["source"] == "skeleton and headers"
    assert found["files"]["differences"] == []
