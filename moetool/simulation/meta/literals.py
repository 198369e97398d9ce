"""Values of tensors that are made from numbers in code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moetool.simulation.meta.replaced import replaced


@contextmanager
def knowing_literals(
    know: Callable[[torch.Tensor, torch.Tensor], None],
    find_value: Callable[[torch.Tensor], torch.Tensor | None],
) -> Iterator[None]:
    """Watch calls that never reach torch's dispatcher, or reach it without their values.

    Those are `torch.tensor` of plain numbers, and a tensor of one number formatted as text. A mode
    for torch's functions would see them too, but also every look at a shape.

    Args:
        know: Sets the values of a meta tensor.
        find_value: Returns the values of a tensor; None if they are unknown.
    """
    make: Any = torch.tensor
    show: Any = torch.Tensor.__format__

    @functools.wraps(make)
    def make_known(*args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = make(*args, **kwargs)
        if result.device.type == "meta":
            know(result, make(*args, **{**kwargs, "device": "cpu"}))
        return result

    @functools.wraps(show)
    def show_known(tensor: torch.Tensor, *args: Any) -> Any:
        value = find_value(tensor)
        return show(tensor if value is None else value, *args)

    with (
        replaced(torch, {"tensor": make_known}),
        replaced(torch.Tensor, {"__format__": show_known}),
    ):
        yield
