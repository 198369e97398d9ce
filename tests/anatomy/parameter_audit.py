"""An observer that records which parameters a forward call reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ParameterAudit(TorchDispatchMode):
    """Records which elements of a model's parameters are inputs of operations that compute.

    Taking a view of a parameter reads nothing; what is computed with the view reads the elements
    that the view spans. A lookup in a table reads the rows it is asked for, and what is computed for
    no token at all reads nothing.

    Args:
        model: A model on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self._read: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            self._names[parameter.untyped_storage().data_ptr()] = name
            self._read[name] = torch.zeros(parameter.numel(), dtype=torch.bool)

    def count_read(self) -> dict[str, int]:
        """Return by the parameter's name how many of its elements were read."""
        return {name: int(read.sum()) for name, read in self._read.items()}

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.embedding.default:
            self._mark_rows(args[0], args[1])
        elif not _is_view(func) and any(tensor.numel() for tensor in _tensors(output)):
            for tensor in _tensors((args, kwargs)):
                self._mark(tensor)
        return output

    def _mark(self, tensor: torch.Tensor) -> None:
        name = self._names.get(tensor.untyped_storage().data_ptr())
        if name is not None:
            elements = torch.as_strided(
                torch.arange(len(self._read[name])),
                tensor.shape,
                tensor.stride(),
                tensor.storage_offset(),
            )
            self._read[name][elements.reshape(-1)] = True

    def _mark_rows(self, table: torch.Tensor, rows: torch.Tensor) -> None:
        name = self._names.get(table.untyped_storage().data_ptr())
        if name is not None:
            self._read[name].view(table.shape)[rows.reshape(-1)] = True


def _is_view(func: Any) -> bool:
    return any(
        value.alias_info is not None and not value.alias_info.is_write
        for value in func._schema.returns
    )


def _tensors(values: object) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
