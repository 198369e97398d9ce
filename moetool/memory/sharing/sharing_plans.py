"""transformers' sharing plans, for each parameter and module of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedModel


def read_tensor_plan(skeleton: PreTrainedModel) -> dict[str, str]:
    """Return the styles of the tensor-parallel plan by path; empty without a plan."""
    return _expand(skeleton, skeleton._tp_plan or {})


def read_expert_plan(skeleton: PreTrainedModel) -> dict[str, str]:
    """Return the styles of the expert-parallel plan by path; empty without a plan."""
    return _expand(skeleton, skeleton._ep_plan or {})


def _expand(skeleton: PreTrainedModel, plan: Mapping[str, str]) -> dict[str, str]:
    """Return a plan whose wildcards are replaced by the numbers of layers.

    A parameter without its own rule has that of the module it belongs to.
    """
    styles: dict[str, str] = {}
    for module_path, module in skeleton.named_modules():
        rule = plan.get(_as_pattern(module_path))
        if rule is not None:
            styles[module_path] = rule
        for name, _ in module.named_parameters(recurse=False):
            path = f"{module_path}.{name}" if module_path else name
            own = plan.get(_as_pattern(path), rule)
            if own is not None:
                styles[path] = own
    return styles


def _as_pattern(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
