"""Read ESFT's choice of experts to train, and find the parameters that it trains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from moetool.anatomy.components import Component
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import InputError

_FLAGS = ("shared_experts", "non_expert_modules")
_HINT = "Write it with `moetool select --export esft`."
# The number of an expert that is a module.
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class ChosenExperts:
    """The content of ESFT's `expert_cfg.json`.

    Attributes:
        experts: The ids of the experts that are trained, by layer.
        has_shared_experts: Whether shared experts are trained too.
        has_other_modules: Whether everything except experts is trained too.
    """

    experts: Mapping[int, frozenset[int]]
    has_shared_experts: bool
    has_other_modules: bool


@dataclass(frozen=True)
class TrainedExperts:
    """The parameters that training of chosen experts holds gradients of.

    Attributes:
        paths: Their paths.
        masked_paths: The paths of those that hold all experts of a layer, not all of which are
            chosen.
        num_chosen_parameters: Parameters of chosen experts.
        num_held_parameters: Parameters of routed experts with gradients: more than those where the
            experts of a layer are one tensor.
    """

    paths: frozenset[str]
    masked_paths: tuple[str, ...]
    num_chosen_parameters: int
    num_held_parameters: int


def read_chosen_experts(path: Path) -> ChosenExperts:
    """Return the content of ESFT's `expert_cfg.json`.

    Raises:
        InputError: The file can't be read, or has another content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.", hint=_HINT) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON.", hint=_HINT) from error
    experts = content.get("experts") if isinstance(content, dict) else None
    if not isinstance(experts, dict):
        raise InputError(f"{path} has no object named experts.", hint=_HINT)
    for name in _FLAGS:
        if not isinstance(content.get(name, False), bool):
            raise InputError(f"{name} in {path} is neither true nor false.", hint=_HINT)
    shared, others = (content.get(name, False) for name in _FLAGS)
    by_layer = {_read_layer(path, name): _read_ids(path, name, experts[name]) for name in experts}
    return ChosenExperts(by_layer, shared, others)


def find_trained_experts(
    model: PreTrainedModel, chosen: ChosenExperts, *, path: Path
) -> TrainedExperts:
    """Return the parameters of a model that ESFT trains.

    Args:
        model: The model with the experts.
        chosen: The experts to train.
        path: The file they are from.

    Raises:
        InputError: The model has no such layer or expert, the file lacks a layer, or nothing is
            chosen.
    """
    skeleton = RoutedSkeleton.of(model)
    counts = {layer.layer: layer.num_experts for layer in skeleton.layers}
    _check(chosen, counts, path)
    trained: set[str] = set()
    masked: list[str] = []
    num_chosen = num_held = 0
    for name, parameter in model.named_parameters():
        place = skeleton.placement.place(name)
        if place.component is Component.ROUTED_EXPERTS:
            ids = chosen.experts.get(-1 if place.layer is None else place.layer, frozenset())
            number = _find_number(name, place.layer)
            if not ids or (number is not None and number not in ids):
                continue
            num_held += parameter.numel()
            share = len(ids) / counts[place.layer or 0] if number is None else 1
            num_chosen += round(parameter.numel() * share)
            if share < 1:
                masked.append(name)
        elif place.component is Component.SHARED_EXPERTS:
            if not chosen.has_shared_experts:
                continue
        elif not chosen.has_other_modules:
            continue
        trained.add(name)
    if not trained:
        raise InputError(f"{path} names no expert, so nothing is trained.", hint=_HINT)
    return TrainedExperts(frozenset(trained), tuple(masked), num_chosen, num_held)


def _check(chosen: ChosenExperts, counts: Mapping[int, int], path: Path) -> None:
    for layer, ids in chosen.experts.items():
        if layer not in counts:
            raise InputError(
                f"{path} names layer {layer}, where the model has no routed experts.",
                hint=f"Its layers with experts are {min(counts)} to {max(counts)}."
                if counts
                else "Choose a model with routed experts.",
            )
        beyond = [each for each in ids if each >= counts[layer]]
        if beyond:
            raise InputError(
                f"{path} names expert {min(beyond)} of layer {layer}, which has {counts[layer]}.",
                hint="Choose the model that the file was written for.",
            )
    missing = sorted(counts.keys() - chosen.experts.keys())
    if missing:
        raise InputError(
            f"{path} has no list for layer {missing[0]}, which ESFT needs.",
            hint="Give it an empty list, which freezes its experts.",
        )


def _find_number(path: str, layer: int | None) -> int | None:
    """Return the number of an expert that is a module; None where all are in one tensor."""
    numbers = [int(number) for number in _NUMBER.findall(path)]
    if layer is not None and layer in numbers:
        numbers.remove(layer)
    return numbers[-1] if numbers else None


def _read_layer(path: Path, name: str) -> int:
    if not name.isdecimal():
        raise InputError(f"{path} names layer {name!r}, which is not a number.", hint=_HINT)
    return int(name)


def _read_ids(path: Path, layer: str, ids: Any) -> frozenset[int]:
    is_list = isinstance(ids, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids
    )
    if not is_list:
        raise InputError(f"Layer {layer} in {path} is not a list of expert ids.", hint=_HINT)
    return frozenset(ids)
