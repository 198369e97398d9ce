"""Signs of experts in a configuration of any kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from moetool.anatomy.config_fields import list_declared_fields

_EXPERTS = re.compile(r"expert|(^|_)moe(_|$)", re.IGNORECASE)
# Sizes and settings for which a class may have a default without having experts.
_SETTING = re.compile(r"size|hidden|dim|freq|loss|coef|implementation|parallel|plan|step|jitter")

# Configurations contain configurations. No real one goes deeper than this.
_DEPTH = 4


def find_config_signs(config: object, *, only_undeclared: bool) -> list[str]:
    """Return the fields, with their values, in which a configuration states experts.

    Args:
        config: The model's configuration, of any type; None if it has none.
        only_undeclared: Pass over the fields that the configuration's class uses. If all of the
            model's code is transformers', that code has built what those fields ask for.
    """
    return list(dict.fromkeys(_find(config, only_undeclared=only_undeclared, depth=0)))


def _find(config: object, *, only_undeclared: bool, depth: int) -> Iterator[str]:
    if config is None or depth > _DEPTH:
        return
    declared = list_declared_fields(type(config)) if only_undeclared else ()
    for name, value in _list_fields(config):
        if name in declared or name.startswith("_"):
            continue
        if _EXPERTS.search(name) and not _SETTING.search(name) and _means_some(value):
            yield f"{name} is {str(value)[:40]}"
        elif isinstance(value, Mapping) or hasattr(value, "to_dict"):
            yield from _find(value, only_undeclared=only_undeclared, depth=depth + 1)


def _list_fields(config: object) -> list[tuple[str, object]]:
    if isinstance(config, Mapping):
        return [(str(name), value) for name, value in config.items()]
    return list(vars(config).items()) if hasattr(config, "__dict__") else []


def _means_some(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value > 1
    return isinstance(value, list | tuple | dict) and bool(value)
