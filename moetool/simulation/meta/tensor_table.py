"""Values by tensor, for as long as the tensors live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.weak import WeakIdRef

Value = TypeVar("Value")


class TensorTable(Generic[Value]):
    """Maps tensors to values without keeping the tensors alive.

    torch's own `WeakTensorKeyDictionary` makes a weak reference for each look at it, which takes
    ten times as long.
    """

    def __init__(self) -> None:
        # By identity, with a reference that removes it when the tensor dies and the identity is free
        # for another.
        self._entries: dict[int, tuple[WeakIdRef, Value]] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._entries

    def __iter__(self) -> Iterator[torch.Tensor]:
        for reference, _ in list(self._entries.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, tensor: torch.Tensor) -> Value:
        return self._entries[id(tensor)][1]

    def __setitem__(self, tensor: torch.Tensor, value: Value) -> None:
        key, entries = id(tensor), self._entries

        def forget(_: object) -> None:
            entries.pop(key, None)

        entry = entries.get(key)
        entries[key] = (WeakIdRef(tensor, forget) if entry is None else entry[0], value)

    def __delitem__(self, tensor: torch.Tensor) -> None:
        del self._entries[id(tensor)]

    def get(self, tensor: torch.Tensor) -> Value | None:
        """Return the value of a tensor; None if it has none."""
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry[1]
