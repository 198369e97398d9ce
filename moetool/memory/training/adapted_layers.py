"""Linear layers that get an adapter, as PEFT chooses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.components import Component
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import UsageError

# peft 0.21 takes these names, and `all-linear`, for expert tensors and routers where a family's
# experts are fused (`_convert_peft_config_moe`).
_OF_FUSED_EXPERTS = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
_ALL_LINEAR = "all-linear"
# `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING` of peft 0.21 for model types with experts:
# names, or a pattern of whole paths.
_PEFTS_DEFAULTS: dict[str, tuple[str, ...] | re.Pattern[str]] = {
    "mixtral": ("q_proj", "v_proj"),
    "llama4": ("q_proj", "v_proj"),
    "gemma4": re.compile(r".*language_model\..*\.(q_proj|v_proj)"),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
}


@dataclass(frozen=True)
class AdaptedLayers:
    """The linear layers of a model that get adapters.

    Attributes:
        paths: Their paths, in the model's order.
        reason: A sentence that says which layers they are, and who chose them.
    """

    paths: tuple[str, ...]
    reason: str


def find_adapted_layers(model: PreTrainedModel, targets: Sequence[str]) -> AdaptedLayers:
    """Return the layers with the names that PEFT's `target_modules` has.

    A name is a module's path, or its end after a dot. Without names they are PEFT's default for the
    model's type or, where it has none, the projections of attention.

    Raises:
        UsageError: No module has a name, one that has it isn't a linear layer, or PEFT adapts fused
            experts by that name.
    """
    model_type = model.config.model_type
    default = _PEFTS_DEFAULTS.get(model_type)
    if targets:
        paths = _match_all(model, targets)
        chosen = ", ".join(targets)
        return AdaptedLayers(paths, f"Adapters are on {len(paths)} layers: {chosen}.")
    if isinstance(default, re.Pattern):
        paths = tuple(path for path, _ in model.named_modules() if default.fullmatch(path))
    else:
        paths = _match_all(model, default) if default else _find_projections(model)
    if not paths:
        raise UsageError(
            f"PEFT has no default for {model_type}, and its attention has no linear layers.",
            hint="Name layers with --lora-targets.",
        )
    names = ", ".join(sorted({path.rpartition(".")[2] for path in paths}))
    if default is None:
        reason = (
            f"PEFT has no default for {model_type}: adapters are on its attention's {names}, "
            f"{len(paths)} layers."
        )
    else:
        reason = f"Adapters are on {names}, PEFT's default for {model_type}: {len(paths)} layers."
    return AdaptedLayers(paths, reason)


def _match_all(model: PreTrainedModel, targets: Sequence[str]) -> tuple[str, ...]:
    found: set[str] = set()
    modules = dict(model.named_modules())
    for target in targets:
        if target == _ALL_LINEAR or (target in _OF_FUSED_EXPERTS and has_fused_experts(model)):
            raise UsageError(
                f"PEFT puts {target} on fused experts too, whose adapters are not estimated.",
                hint=f"Choose among {_list_names(modules)}.",
            )
        paths = {path for path in modules if path == target or path.endswith(f".{target}")}
        if not paths:
            raise UsageError(
                f"The model has no module named {target}, so it can't have an adapter.",
                hint=f"Choose among {_list_names(modules)}.",
            )
        other = next((path for path in paths if not isinstance(modules[path], nn.Linear)), None)
        if other is not None:
            kind = type(modules[other]).__name__
            raise UsageError(
                f"{other} is a {kind}, and adapters are for linear layers.",
                hint=f"Choose among {_list_names(modules)}.",
            )
        found |= paths
    return tuple(path for path in modules if path in found)


def has_fused_experts(model: PreTrainedModel) -> bool:
    """Return whether a parameter holds the matrices of all experts of a layer."""
    return any(
        parameter.dim() == 3 and ".experts." in f".{path}"
        for path, parameter in model.named_parameters()
    )


def _list_names(modules: dict[str, nn.Module]) -> str:
    names = {
        path.rpartition(".")[2] for path, each in modules.items() if isinstance(each, nn.Linear)
    }
    return ", ".join(sorted(name for name in names - _OF_FUSED_EXPERTS if not name.isdigit()))


def _find_projections(model: PreTrainedModel) -> tuple[str, ...]:
    placement = RoutedSkeleton.of(model).placement
    return tuple(
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and placement.place(f"{path}.weight").component is Component.MIXER
    )
