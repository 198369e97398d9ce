"""Tiny configurations of every Mixture-of-Experts family that transformers 5 can build.

A configuration class is filled with whatever fields it shares with a common table of small values,
and so are the configurations inside it. What a family needs beyond that is in `FAMILIES`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from tests.families.tiny.families import find_family
from tests.families.tiny.sizes import TEXT, TOWER, Fields


def build_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """Return a tiny configuration of a family.

    Args:
        name: The family, one of `FAMILIES` or `NOT_ROUTED`.
        overrides: Fields with another value than the table's; dicts are for the configurations
            inside it, whose other fields keep their values.
    """
    family = find_family(name)
    overrides = _merge(family.overrides, overrides)
    return _fill(CONFIG_MAPPING[family.model_type], overrides, TEXT)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Fields:
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merge(inner, value)
        merged[name] = value
    return merged


def _fill(
    config_class: type[PreTrainedConfig], overrides: Mapping[str, Any], table: Mapping[str, Any]
) -> PreTrainedConfig:
    """Return a configuration with the table's value in every field that the table knows."""
    names = {one.name for one in dataclasses.fields(config_class)}
    shared = {name: value for name, value in table.items() if name in names}
    values: Fields = copy.deepcopy({**shared, **overrides})
    for name in config_class.sub_configs:
        inner_overrides = values.pop(name, {})
        inner_class = _inner_class(config_class, name, inner_overrides.pop("model_type", None))
        if inner_class is not None:
            is_tower = name.startswith(("vision", "audio"))
            values[name] = _fill(inner_class, inner_overrides, TOWER if is_tower else table)
    return config_class(**values)


def _inner_class(
    config_class: type[PreTrainedConfig], name: str, model_type: str | None
) -> type[PreTrainedConfig] | None:
    """Return the class of a configuration's field, or None where it is left out by default."""
    if model_type is not None:
        return CONFIG_MAPPING[model_type]
    inner_class: type[Any] = config_class.sub_configs[name]
    if issubclass(inner_class, PreTrainedConfig):
        return inner_class
    # Otherwise it is `AutoConfig`: any family's.
    default = getattr(config_class(), name)
    return None if default is None else type(default)
