"""A model type that transformers lacks is counted by a known class, with a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moetool.catalogue.published import read_published_config
from moetool.checkpoint.config import make_config
from moetool.errors import InputError, MoetoolError, UntraceableError
from moetool.inspection.inspect import inspect_model
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from tests.catalogue.totals import TOTALS

# As tencent/Hunyuan-A13B-Instruct was published: per-layer lists, and fields of its remote code.
PUBLISHED: dict[str, Any] = {
    **read_published_config("hunyuan-a13b"),
    "model_type": "hunyuan",
    "auto_map": {"AutoConfig": "configuration_hunyuan.HunYuanConfig"},
    "cla_share_factor": 2,
    "eod_token_id": 127967,
    "moe_intermediate_size": [3072] * 32,
    "moe_topk": [8] * 32,
    "num_shared_expert": [1] * 32,
}


def write(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def test_a_model_is_counted_by_the_class_that_its_config_names(tmp_path: Path) -> None:
    inspected = inspect_model(write(tmp_path, PUBLISHED))

    assert inspected.parameters is not None
    assert inspected.parameters.total == TOTALS["hunyuan-a13b"]
    assert inspected.top_k == 8
    counted, ignored = inspected.notes[:2]
    assert "'hunyuan': counted by the transformers class that config.json names" in counted
    assert "(model_type 'hunyuan_v1_moe'), not by the repository's code" in counted
    assert ignored == (
        "That class ignores 4 fields of config.json: num_shared_expert, use_qk_norm, "
        "cla_share_factor, moe_intermediate_size."
    )


def test_memory_is_estimated_by_that_class_and_says_so(tmp_path: Path) -> None:
    config = {**PUBLISHED, "num_hidden_layers": 2, "moe_topk": 2, "num_shared_expert": 1}
    scenario = Scenario(batch_size=1, num_prompt_tokens=16, num_new_tokens=1)

    (estimate,) = estimate_memory(write(tmp_path, config), [scenario])

    assert "'hunyuan'" in estimate.notes[0]


@pytest.mark.parametrize(
    "architectures",
    [
        None,
        [],
        "HunYuanMoEV1ForCausalLM",
        ["HunYuanMoEV1ForCausalLM", "MixtralForCausalLM"],
        ["HunYuanMoEV1ForCausalLM", "Unheard"],
        ["Trainer"],
        ["os.system"],
        ["PreTrainedModel"],
        [["HunYuanMoEV1ForCausalLM"]],
        ["HunYuanMoEV1ForCausalLM"] * 10**5,
    ],
)
def test_a_class_that_is_not_named_beyond_doubt_is_not_taken(
    architectures: object, tmp_path: Path
) -> None:
    config = {**PUBLISHED, "architectures": architectures}
    with pytest.raises(InputError, match="needs the Python code in its own repository"):
        inspect_model(write(tmp_path, config))

    del config["auto_map"]
    with pytest.raises(UntraceableError, match="has no architecture 'hunyuan'"):
        inspect_model(write(tmp_path, config))


def test_what_is_traced_is_never_another_class_than_the_repositorys(tmp_path: Path) -> None:
    with pytest.raises(MoetoolError, match="needs the Python code"):
        make_config(PUBLISHED, name="x", label="x", code=str(tmp_path), trust_remote_code=False)
