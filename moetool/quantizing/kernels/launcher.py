"""A program in Triton's language that is started with little of Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

# Triton compiles a program for pointers that are, or aren't, multiples of this.
_ALIGNMENT = 16


class Launcher:
    """A program with its grid and constants.

    Triton looks at each argument whenever a program is called, which takes longer than most of the
    programs while single tokens are decoded. What it has compiled for some tensors is therefore
    called again with the pointers of others of the same kind.

    Args:
        name: A function in `programs` whose first parameters are pointers.
        grid: Numbers of programs in three dimensions.
        constants: Its other parameters, in their order.
        options: For the compiler.
    """

    def __init__(
        self, name: str, grid: tuple[int, int, int], constants: Mapping[str, Any], **options: int
    ) -> None:
        self._name, self._grid = name, grid
        self._constants, self._options = dict(constants), options
        self._values = tuple(constants.values())
        self._compiled: dict[tuple[Any, ...], Callable[..., None]] = {}
        self._takes_constants = True

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Start the program on the device of the tensors, all of which are contiguous."""
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._start(tensors)
        else:
            self._start(tensors)

    def _start(self, tensors: tuple[torch.Tensor, ...]) -> None:
        kind = (tensors[0].get_device(), *[tensor.dtype for tensor in tensors])
        compiled = self._compiled.get(kind)
        if compiled is not None:
            pointers = [tensor.data_ptr() for tensor in tensors]
            if _are_aligned(pointers) and self._takes_constants:
                try:
                    compiled(*pointers, *self._values)
                except TypeError:
                    # As compiled by another version of Triton. Nothing was started.
                    self._takes_constants = False
                else:
                    return
        from moetool.quantizing.kernels import programs

        program = getattr(programs, self._name)
        kernel = program[self._grid](*tensors, **self._constants, **self._options)
        # Triton's interpreter compiles nothing.
        if kernel is not None and _are_aligned([tensor.data_ptr() for tensor in tensors]):
            self._compiled[kind] = kernel[self._grid]


def _are_aligned(pointers: list[int]) -> bool:
    bits = 0
    for pointer in pointers:
        bits |= pointer
    return bits % _ALIGNMENT == 0
