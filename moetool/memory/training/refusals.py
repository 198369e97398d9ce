"""Refuse options of training that contradict each other or change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.choices import without_effect
from moetool.errors import UsageError
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.quantized.kinds import Quantization

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario


def refuse_training(scenario: Scenario) -> None:
    """Refuse a scenario whose options of training contradict its other options.

    Raises:
        UsageError: They do.
    """
    is_frozen = scenario.frozen is not FrozenPart.NONE
    has_chosen = scenario.trained_experts is not None
    if scenario.task != "train":
        given = {
            "--optimizer": ("an optimizer", scenario.optimizer is not None),
            "--gradient-checkpointing": ("gradient checkpointing", scenario.has_checkpointing),
            "--freeze": ("a frozen part", is_frozen or has_chosen),
            "--lora-rank": ("a LoRA rank", scenario.lora_rank is not None),
            "--lora-targets": ("a choice of adapted layers", scenario.lora_targets is not None),
        }
        idle = {flag: words for flag, (words, is_given) in given.items() if is_given}
        if idle:
            raise without_effect(idle, because="nothing is trained", unless="choose --task train")
        return
    if scenario.num_new_tokens:
        raise UsageError(
            "A step of training makes no new tokens.",
            hint="Leave out --new-tokens, or choose --task generate.",
        )
    # Flash and flex attention.
    if scenario.attention not in (None, "sdpa", "eager"):
        raise UsageError(
            f"The backward pass of {scenario.attention} isn't simulated.",
            hint="Choose --attention sdpa or eager.",
        )
    if scenario.quantization is not Quantization.NONE:
        raise UsageError(
            f"Weights in {scenario.quantization} can't be trained.",
            hint="Leave out --quantization.",
        )
    if is_frozen and has_chosen:
        raise UsageError(
            "Chosen experts are all that is trained, so no other part can be frozen.",
            hint="Give --freeze either a part or a file.",
        )
    if scenario.lora_rank is None and scenario.lora_targets is not None:
        raise without_effect(
            {"--lora-targets": "a choice of adapted layers"},
            because="there are no adapters",
            unless="give --lora-rank",
        )
    if scenario.lora_rank is not None and (is_frozen or has_chosen):
        raise without_effect(
            {"--freeze": "a frozen part"},
            because="adapters are all that is trained",
            unless="leave out --lora-rank",
        )
