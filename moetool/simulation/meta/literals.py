"""Values of tensors that are made from numbers in code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Literals(TorchFunctionMode):
    """Sees calls that never reach the dispatcher, or reach it without their values.

    Those are `torch.tensor` of plain numbers, and a tensor of one number formatted as text.

    Args:
        know: Sets the values of a meta tensor.
        find_value: Returns the values of a tensor; None if they are unknown.
    """

    def __init__(
        self,
        know: Callable[[torch.Tensor, torch.Tensor], None],
        find_value: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        super().__init__()
        self._know = know
        self._find_value = find_value

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.Tensor.__format__:
            value = self._find_value(args[0])
            shown = args[0] if value is None else value
            return func(shown, *args[1:])  # type: ignore[no-untyped-call]
        result = func(*args, **kwargs)
        if func is torch.tensor and result.device.type == "meta":
            self._know(result, func(*args, **{**kwargs, "device": "cpu"}))
        return result
