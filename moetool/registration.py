"""Registration with transformers, whenever that is imported, of the format that moetool writes.

`import moetool` imports neither torch nor transformers. The classes behind the names are imported when a
checkpoint needs them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

METHOD = "moetool"
_REGISTRY = "transformers.quantizers.auto"
_CLASSES = "moetool.quantizing.quantizer"


def register_with_transformers() -> None:
    """Have `from_pretrained` load folders that `moetool quantize` wrote."""
    if _REGISTRY in sys.modules:
        _add_placeholders(sys.modules[_REGISTRY])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def remove_placeholders() -> None:
    """Make room in transformers' registry for the classes themselves."""
    registry: Any = importlib.import_module(_REGISTRY)
    for mapping in _list_mappings(registry):
        if isinstance(mapping.get(METHOD), _Placeholder):
            del mapping[METHOD]


class _Placeholder:
    """Stands for a class until it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._find()(*args, **kwargs)

    def from_dict(self, stated: Mapping[str, Any], **kwargs: Any) -> Any:
        return self._find().from_dict(stated, **kwargs)

    def _find(self) -> Any:
        return getattr(importlib.import_module(_CLASSES), self._name)


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of transformers' registry."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _add_placeholders(module)


def _add_placeholders(registry: Any) -> None:
    configs, quantizers = _list_mappings(registry)
    configs.setdefault(METHOD, _Placeholder("ExpertsConfig"))
    quantizers.setdefault(METHOD, _Placeholder("ExpertsQuantizer"))


def _list_mappings(registry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return registry.AUTO_QUANTIZATION_CONFIG_MAPPING, registry.AUTO_QUANTIZER_MAPPING
