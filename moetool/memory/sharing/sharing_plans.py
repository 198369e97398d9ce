"""What transformers' plans of sharing a model say of each of its parameters and modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedModel


def read_tensor_plan(skeleton: PreTrainedModel) -> dict[str, str]:
    """Return the style of all that the tensor-parallel plan names, by path; empty without one."""
    return _expand(skeleton, skeleton._tp_plan or {})


def read_expert_plan(skeleton: PreTrainedModel) -> dict[str, str]:
    """Return the style of all that the expert-parallel plan names, by path; empty without one."""
    return _expand(skeleton, skeleton._ep_plan or {})


def _expand(skeleton: PreTrainedModel, plan: Mapping[str, str]) -> dict[str, str]:
    """Return a plan whose wildcards are replaced by the numbers of layers.

    A parameter without a rule of its own has that of the module it belongs to.
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
