"""Let a scenario's part of a model be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from moetool.memory.scenario import Scenario
from moetool.memory.training.adapted_layers import find_adapted_layers, has_fused_experts
from moetool.memory.training.chosen_experts import find_trained_experts, read_chosen_experts
from moetool.memory.training.freezing import masked, trained_except, trained_only
from moetool.simulation.training.adapters import adapted

_WITHOUT_FUSED = (
    "Experts in fused tensors have no adapters: PEFT puts them there only with target_parameters, "
    "which is not estimated."
)
_FUSED = (
    "The experts of a layer are one tensor, so gradients and optimizer states are held for all "
    "experts of a layer with a chosen one: {num_held:,} parameters, of which {num_chosen:,} are of "
    "chosen experts. The gradients of the others are set to zero by a mask, whose product takes as "
    "much as a gradient while it is made. ESFT's own code, with a module for each expert, holds "
    "gradients and states for the chosen ones only."
)


@contextmanager
def trained_as(model: PreTrainedModel, scenario: Scenario) -> Iterator[tuple[str, ...]]:
    """Let what a scenario trains require gradients, and restore the model afterwards.

    Yields:
        Notes on what is trained.

    Raises:
        InputError: The file of chosen experts can't be used with the model.
        UsageError: The model lacks the part to freeze or the layers to adapt.
    """
    if scenario.lora_rank is not None:
        names = [name.strip() for name in (scenario.lora_targets or "").split(",") if name.strip()]
        layers = find_adapted_layers(model, names)
        notes = (layers.reason, *((_WITHOUT_FUSED,) if has_fused_experts(model) else ()))
        with (
            trained_only(model, frozenset()),
            adapted(model, layers.paths, rank=scenario.lora_rank),
        ):
            yield notes
    elif scenario.trained_experts is not None:
        path = Path(scenario.trained_experts)
        found = find_trained_experts(model, read_chosen_experts(path), path=path)
        numbers = {"num_held": found.num_held_parameters, "num_chosen": found.num_chosen_parameters}
        is_fused = numbers["num_held"] > numbers["num_chosen"]
        with trained_only(model, found.paths), masked(model, found.masked_paths):
            yield (_FUSED.format(**numbers),) if is_fused else ()
    else:
        with trained_except(model, scenario.frozen):
            yield ()
