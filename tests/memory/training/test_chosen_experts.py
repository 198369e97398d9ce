"""Experts that ESFT's file chooses are trained, and nothing else unless it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moetool.errors import InputError, UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.trained_parts import trained_as
from moetool.memory.training.chosen_experts import find_trained_experts, read_chosen_experts
from moetool.simulation.training.training_run import NUM_STEPS, TrainingOptions, run_training
from tests.simulation.skeletons import build_family_skeleton

# The first layer has no routed experts.
_LAYERS = (1, 2, 3)


def write(folder: Path, experts: dict[str, Any], **flags: bool) -> Path:
    path = folder / "expert_cfg.json"
    lists = {str(layer): [] for layer in _LAYERS} | experts
    path.write_text(json.dumps({"experts": lists, **flags}), encoding="utf-8")
    return path


def find_trained(path: Path, family: str = "deepseek_v2") -> dict[str, int]:
    skeleton = build_family_skeleton(family)
    found = find_trained_experts(skeleton, read_chosen_experts(path), path=path)
    return {name: each.numel() for name, each in skeleton.named_parameters() if name in found.paths}


def test_tensors_of_layers_with_chosen_experts_are_trained(tmp_path: Path) -> None:
    path = write(tmp_path, {"1": [1, 2], "3": [0]})
    trained = find_trained(path)
    assert set(trained) == {
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer in (1, 3)
        for name in ("gate_up_proj", "down_proj")
    }
    skeleton = build_family_skeleton("deepseek_v2")
    found = find_trained_experts(skeleton, read_chosen_experts(path), path=path)
    num_experts = skeleton.config.n_routed_experts
    assert found.num_held_parameters == sum(trained.values())
    of_layer = found.num_held_parameters // 2
    assert found.num_chosen_parameters == 3 * of_layer // num_experts


def test_other_modules_are_trained_where_the_file_says_so(tmp_path: Path) -> None:
    shared = find_trained(write(tmp_path, {}, shared_experts=True))
    assert shared
    assert all(".shared_experts." in name for name in shared)
    others = find_trained(write(tmp_path, {}, non_expert_modules=True))
    assert "model.embed_tokens.weight" in others
    assert not any("experts" in name for name in others)


def test_a_file_that_doesn_t_fit_is_refused(tmp_path: Path) -> None:
    for experts, error in (
        ({"1": [99]}, "expert 99 of layer 1"),
        ({"7": [1]}, "names layer 7"),
        ({}, "names no expert"),
        ({"1": 1}, "Layer 1 in .* is not a list"),
        ({"first": [1]}, "names layer 'first'"),
    ):
        with pytest.raises(InputError, match=error):
            find_trained(write(tmp_path, experts))
    path = tmp_path / "expert_cfg.json"
    for text, error in (
        ("{", "is not JSON"),
        ("[]", "no object named experts"),
        ('{"experts": {}, "shared_experts": 1}', "neither true nor false"),
        ('{"experts": {"1": [1]}}', "no list for layer 2"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=error):
            find_trained(path)
    with pytest.raises(InputError, match="can't be read"):
        find_trained(tmp_path / "missing.json")


def test_masks_take_a_second_gradient_for_a_moment(tmp_path: Path) -> None:
    skeleton = build_family_skeleton("deepseek_v2")
    num_experts = skeleton.config.n_routed_experts
    path = write(tmp_path, {"1": [1], "2": list(range(num_experts))})
    with trained_as(skeleton, Scenario(task=Task.TRAIN, trained_experts=str(path))):
        timeline = run_training(skeleton, TrainingOptions(2, 8))
    products = [
        event.num_bytes
        for event in timeline.events
        if event.num_bytes >= 0
        and event.block in timeline.gradient_blocks
        and timeline.origins[event.origin].operation == "mul"
    ]
    experts = skeleton.get_submodule("model.layers.1.mlp.experts")
    # Those of the layer of which one expert is chosen, in each step.
    assert sorted(products) == sorted(NUM_STEPS * [each.nbytes for each in experts.parameters()])


def test_gradients_and_states_are_those_of_whole_tensors(tmp_path: Path) -> None:
    layers: dict[str, list[int]] = {str(layer): [] for layer in range(6)}
    path = tmp_path / "expert_cfg.json"
    path.write_text(json.dumps({"experts": {**layers, "3": [1]}}), encoding="utf-8")
    scenario = Scenario(task=Task.TRAIN, num_prompt_tokens=16, trained_experts=path)  # type: ignore[arg-type]
    (estimate,) = estimate_memory("demo", [scenario])
    training = estimate.training
    assert training is not None
    assert training.gradient_bytes == 4 * training.num_trained_parameters
    (note,) = [each for each in estimate.notes if "one tensor" in each]
    assert f"{training.num_trained_parameters:,} parameters" in note
    with pytest.raises(UsageError, match="no other part"):
        Scenario(task=Task.TRAIN, trained_experts=str(path), frozen="router")  # type: ignore[arg-type]
