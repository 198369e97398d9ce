"""Two derivations agree: files of llama.cpp's converter, and the models that transformers builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.gguf.table import count_gguf
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.parameters import ActiveDefinition, ParameterTable
from moetool.anatomy.skeleton.active_experts import list_expert_parameters
from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import count_skeleton
from moetool.checkpoint.gguf.files import open_gguf
from tests.anatomy.gguf.converted import lay_down, read_converted

FAMILIES = sorted(read_converted())
INSTALLED = [f for f in FAMILIES if read_converted()[f]["config"]["model_type"] in CONFIG_MAPPING]
# Those that most people run.
EXPECTED = {
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "glm4_moe",
    "llama4_text",
}


def test_the_families_that_people_run_are_there() -> None:
    assert set(FAMILIES) >= EXPECTED
    assert len(FAMILIES) > 30
    types = {line["tensor_type"] for line in read_converted().values()}
    assert types == {"f32", "f16", "bf16", "q8_0"}


@pytest.mark.parametrize("family", INSTALLED)
def test_parameters_are_those_of_the_skeleton(family: str, tmp_path: Path) -> None:
    line = read_converted()[family]
    found = count_gguf(open_gguf(lay_down(line, tmp_path / "model.gguf")))
    (tmp_path / "config.json").write_text(json.dumps(line["config"]))
    skeleton = build(tmp_path)
    built = count_skeleton(skeleton, dtype=None)
    assert sum_places(found.table) == sum_places(built)
    for definition in ActiveDefinition:
        assert found.table.count_active(definition) == built.count_active(definition)
    assert found.table.is_tied == built.is_tied
    assert found.unclear is None
    layers = {layer.layer: layer.num_experts for layer in skeleton.text_layers}
    assert {layer: number for (_, layer), number in found.num_experts.items()} == layers
    for layer in skeleton.text_layers:
        of_layer = list_expert_parameters(skeleton.model, layer).values()
        total = sum(parameter.numel() for parameter in of_layer)
        assert found.expert_params["decoder", layer.layer] == total // layer.num_experts
    assert {found.top_k} == set(skeleton.top_k.values())
    # Nothing else is in the files.
    assert {group.reason for group in found.other_tensors} <= {Reason.BUFFERS, Reason.ROPE}


def build(folder: Path) -> RoutedSkeleton:
    config = AutoConfig.from_pretrained(folder)
    return RoutedSkeleton.of(build_whole_skeleton(config, dtype=None, trust_remote_code=False))


def sum_places(table: ParameterTable) -> dict[tuple[int | None, Component], int]:
    """Return the parameters of each component and layer, without towers, which are other files."""
    sums: dict[tuple[int | None, Component], int] = {}
    for row in table.rows:
        if row.component not in TOWERS and row.num_params:
            key = (row.layer, row.component)
            sums[key] = sums.get(key, 0) + row.num_params
    return sums
