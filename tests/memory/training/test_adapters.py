"""Adapters take what PEFT's take."""

from __future__ import annotations

import peft
import pytest
import torch

from moetool.errors import UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.trained_parts import trained_as
from moetool.memory.training.adapted_layers import find_adapted_layers
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes
from moetool.simulation.training.training_run import TrainingOptions, run_training
from tests.simulation.skeletons import build_family_skeleton

_RANK = 4


# peft 0.21 asks by transformers' old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(
    ("family", "names", "dtype", "has_checkpointing"),
    [
        ("mixtral", ("q_proj", "v_proj"), torch.bfloat16, True),
        (
            "deepseek_v2",
            ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"),
            torch.float32,
            False,
        ),
    ],
)
def test_every_allocation_is_pefts(
    family: str, names: tuple[str, ...], dtype: torch.dtype, has_checkpointing: bool
) -> None:
    options = TrainingOptions(2, 8, has_checkpointing=has_checkpointing)
    adapted, by_peft = (
        build_family_skeleton(family, num_hidden_layers=2, dtype=dtype) for _ in range(2)
    )
    with torch.device("meta"):
        peft.get_peft_model(by_peft, peft.LoraConfig(r=_RANK, target_modules=list(names)))
    assert by_peft.lm_head.weight.dtype == dtype
    expected = run_training(by_peft, options)
    scenario = Scenario(task=Task.TRAIN, lora_rank=_RANK)
    with trained_as(adapted, scenario):
        found = run_training(adapted, options)
        trained, expected_trained = (
            sorted(tuple(each.shape) for each in model.parameters() if each.requires_grad)
            for model in (adapted, by_peft)
        )
        assert trained == expected_trained
        assert sorted(list_weight_bytes(adapted)) == sorted(list_weight_bytes(by_peft))
    assert [event[:2] for event in found.events] == [event[:2] for event in expected.events]
    assert all(each.requires_grad for each in adapted.parameters())
    assert not any("lora" in path for path, _ in adapted.named_parameters())


def test_pefts_defaults_are_the_ones_here() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    layers = find_adapted_layers(build_family_skeleton("mixtral"), ())
    assert {path.rpartition(".")[2] for path in layers.paths} == set(DEFAULTS["mixtral"])
    assert "PEFT's default for mixtral" in layers.reason
    assert "olmoe" not in DEFAULTS
    layers = find_adapted_layers(build_family_skeleton("olmoe"), ())
    assert "PEFT has no default for olmoe" in layers.reason


def test_layers_that_cant_have_an_adapter_are_refused() -> None:
    skeleton = build_family_skeleton("mixtral")
    for name, error in (
        ("x_proj", "no module named x_proj"),
        ("self_attn", "is a MixtralAttention"),
        ("gate_proj", "on fused experts too"),
        ("all-linear", "on fused experts too"),
    ):
        with pytest.raises(UsageError, match=error) as caught:
            find_adapted_layers(skeleton, [name])
        assert "q_proj" in caught.value.hint


def test_adapters_are_all_that_is_trained() -> None:
    (estimate,) = estimate_memory(
        "demo", [Scenario(task=Task.TRAIN, num_prompt_tokens=64, lora_rank=_RANK)]
    )
    training = estimate.training
    assert training is not None
    assert training.gradient_bytes == 4 * training.num_trained_parameters
    assert training.optimizer_state_bytes == 8 * training.num_trained_parameters
    assert any("have no adapters" in note for note in estimate.notes)


def test_options_without_adapters_are_refused() -> None:
    for words, error in (
        ({"lora_rank": 8}, "nothing is trained"),
        ({"task": "train", "lora_targets": "q_proj"}, "no adapters"),
        ({"task": "train", "lora_rank": 8, "frozen": "router"}, "adapters are all"),
        ({"task": "train", "lora_rank": 0}, "can't be 0"),
        ({"task": "train", "lora_rank": 8, "lora_targets": ["q_proj"]}, "layers can't be"),
    ):
        with pytest.raises(UsageError, match=error):
            Scenario(**words)
