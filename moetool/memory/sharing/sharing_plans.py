"""transformers' sharing plans, for each parameter and module of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedModel

from moetool.anatomy.routing.walk import join_path, walk_modules


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
    if not plan:
        return styles
    for module_path, module in walk_modules(skeleton):
        pattern = _as_pattern(module_path)
        rule = plan.get(pattern)
        if rule is not None:
            styles[module_path] = rule
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            path = join_path(module_path, name)
            own = plan.get(_as_pattern(path), rule)
            if own is not None:
                styles[path] = own
    return styles


def _as_pattern(path: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
