"""An adapter that PEFT saved adds the parameters that PEFT trains."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from moetool.inspection.inspect import inspect_model
from moetool.inspection.result import Inspection
from tests.tiny_models import build_model

RANK, NUM_EXPERTS, TOP_K = 4, 8, 2
BASE = "mistralai/Mixtral-8x7B-v0.1"


def count_trained(folder: Path) -> tuple[int, int]:
    """Save an adapter of attention and experts; return what PEFT trains in each."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK,
        target_modules=["q_proj", "v_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        modules_to_save=["lm_head"],
    )
    with warnings.catch_warnings():
        # Of kernels that are not installed here.
        warnings.simplefilter("ignore")
        model = get_peft_model(build_model("mixtral", num_local_experts=NUM_EXPERTS), config)
        model.save_pretrained(str(folder))
    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    of_experts = sum(number for name, number in trained.items() if "experts" in name)
    of_head = sum(number for name, number in trained.items() if "lm_head" in name)
    return sum(trained.values()) - of_experts - of_head, of_experts


def name_base(folder: Path, base: object) -> None:
    path = folder / "adapter_config.json"
    stated = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**stated, "base_model_name_or_path": base}), "utf-8")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """An adapter for a base of the catalogue, and what it trains outside and inside experts."""
    folder = tmp_path_factory.mktemp("adapter")
    others, experts = count_trained(folder)
    name_base(folder, BASE)
    return folder, others, experts


@pytest.fixture(scope="module")
def found(adapter: tuple[Path, int, int]) -> Inspection:
    return inspect_model(adapter[0])


def test_added_parameters_are_those_that_peft_trains(
    adapter: tuple[Path, int, int], found: Inspection
) -> None:
    _, others, experts = adapter
    assert found.parameters is not None

    assert found.parameters.total == others + experts
    assert found.parameters.components["routed_experts"] == experts
    assert found.num_experts == NUM_EXPERTS
    assert any("lm_head" in note and "replace" in note for note in found.notes)


def test_a_token_runs_the_adapters_of_its_experts(
    adapter: tuple[Path, int, int], found: Inspection
) -> None:
    _, others, experts = adapter
    assert found.parameters is not None

    assert found.parameters.active_params == others + experts * TOP_K // NUM_EXPERTS


def test_the_base_model_is_that_of_the_catalogue(found: Inspection) -> None:
    base = inspect_model("mixtral-8x7b").parameters
    adapter, added = found.adapter, found.parameters
    assert base is not None
    assert added is not None
    assert adapter is not None
    assert base.total is not None
    assert base.active_params is not None
    assert added.total is not None
    assert added.active_params is not None

    assert (adapter.method, adapter.rank, adapter.base) == ("LORA", RANK, BASE)
    assert adapter.base_params == base.total
    assert adapter.params == base.total + added.total
    assert adapter.active_params == base.active_params + added.active_params


@pytest.mark.parametrize("base", ["someone/unknown", None, 7, ""])
def test_without_a_known_base_only_what_is_added_is_known(
    base: object, adapter: tuple[Path, int, int], tmp_path: Path
) -> None:
    folder, others, experts = adapter
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name_base(tmp_path, base)

    found = inspect_model(tmp_path)

    assert found.parameters is not None
    assert found.parameters.total == others + experts
    assert found.parameters.active_params is None
    assert found.adapter is not None
    assert found.adapter.params is None
    assert "base model" in found.notes[0]


def test_adapters_of_single_experts_are_counted_by_their_names(
    adapter: tuple[Path, int, int], tmp_path: Path
) -> None:
    folder, others, experts = adapter
    tensors = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        if ".experts." not in name:
            tensors[name] = tensor
            continue
        part = "w1" if "base_layer" in name else "w2"
        pair = "lora_A" if "lora_A" in name else "lora_B"
        whole = name.partition(".experts.")[0]
        split = tensor.chunk(NUM_EXPERTS, dim=0 if pair == "lora_A" else 1)
        for expert, each in enumerate(split):
            tensors[f"{whole}.experts.{expert}.{part}.{pair}.weight"] = each.contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())

    found = inspect_model(tmp_path)

    assert found.parameters is not None
    assert found.parameters.total == others + experts
    assert found.parameters.active_params == others + experts * TOP_K // NUM_EXPERTS
