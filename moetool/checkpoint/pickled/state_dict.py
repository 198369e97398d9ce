"""The tensors of a model in the value that a pickle holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moetool.checkpoint.pickled.stand_ins import PickleError
from moetool.checkpoint.pickled.torch_names import PickledTensor

# Keys under which programs keep the state dict of a model, next to that of its training.
_WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
# State dicts nest to four or five. The same dict may occur many times.
_MOST_LEVELS = 10
_MOST_ENTRIES = 5_000_000


def find_tensors(value: Any) -> tuple[dict[str, PickledTensor], tuple[str, ...]]:
    """Return the tensors of a state dict by name, and the names of the parts next to it.

    Args:
        value: A state dict, perhaps of state dicts whose names are joined by dots; or a dict that
            has one under a usual name.

    Raises:
        PickleError: It is neither, or holds the same name twice.
    """
    if not isinstance(value, dict):
        raise PickleError(f"a {type(value).__name__} in place of a state dict")
    others: tuple[str, ...] = ()
    wrapper = next((name for name in _WRAPPERS if isinstance(value.get(name), dict)), None)
    if wrapper is not None and not any(isinstance(each, PickledTensor) for each in value.values()):
        others = tuple(
            name
            for name, part in value.items()
            if isinstance(name, str) and name != wrapper and isinstance(part, dict | list)
        )
        value = value[wrapper]
    tensors: dict[str, PickledTensor] = {}
    for name, tensor in _walk(value):
        if name in tensors:
            raise PickleError("two tensors of the same name")
        tensors[name] = tensor
    if not tensors:
        raise PickleError("no tensors")
    return tensors, others


def _walk(value: Mapping[Any, Any]) -> Iterator[tuple[str, PickledTensor]]:
    """Yield the tensors in dicts inside each other, by their joined names, in their order."""
    pending: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter(value.items()))]
    num_entries = 0
    while pending:
        prefix, items = pending[-1]
        name, part = next(items, (None, None))
        if name is None and part is None:
            pending.pop()
            continue
        num_entries += 1
        if num_entries > _MOST_ENTRIES or len(pending) > _MOST_LEVELS:
            raise PickleError("dicts that are nested too deeply, or in each other")
        if not isinstance(name, str):
            continue
        if isinstance(part, PickledTensor):
            yield prefix + name, part
        elif isinstance(part, dict):
            pending.append((f"{prefix}{name}.", iter(part.items())))
