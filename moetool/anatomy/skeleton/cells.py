"""Sums of parameters by their place, which become the rows of a parameter table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from moetool.anatomy.components import Place
from moetool.anatomy.parameters import ActiveRange, ParameterRow


@dataclass
class _Cell:
    """The sums for one row."""

    num_params: int = 0
    active: ActiveRange | None = field(default_factory=lambda: ActiveRange(0, 0))
    num_bytes: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)


class ParameterCells:
    """Sums up parameters, each of which is counted once, however many modules share it."""

    def __init__(self) -> None:
        self._cells: dict[Place, _Cell] = {}
        self._place_of: dict[int, Place] = {}

    def add(
        self, parameter: nn.Parameter, place: Place, *, dtype: torch.dtype | None, num_active: int
    ) -> None:
        """Add a parameter.

        Args:
            parameter: One that was not added before.
            dtype: The dtype that its bytes are counted in; None if unknown.
            num_active: How many of its elements every token runs.
        """
        self._place_of[id(parameter)] = place
        cell = self._cells.setdefault(place, _Cell())
        cell.num_params += parameter.numel()
        if dtype is not None:
            cell.num_bytes += parameter.numel() * dtype.itemsize
            cell.dtypes[str(dtype).removeprefix("torch.")] = None
        if num_active:
            self._add(cell, ActiveRange(num_active, num_active))

    def add_active(self, parameter: nn.Parameter, active: ActiveRange | None) -> None:
        """Add active parameters to the place of a parameter; None makes those there unknown."""
        self._add(self._cells[self._place_of[id(parameter)]], active)

    def forget_active(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the active parameters at the places of parameters unknown."""
        for parameter in parameters:
            self.add_active(parameter, None)

    def list_rows(self) -> Iterator[ParameterRow]:
        """Yield a row for each place, in the order in which places first occurred."""
        for place, cell in self._cells.items():
            yield ParameterRow(
                stack=place.stack,
                layer=place.layer,
                component=place.component,
                num_params=cell.num_params,
                active=cell.active,
                dtype=" + ".join(cell.dtypes) or None,
                num_bytes=cell.num_bytes if cell.dtypes else None,
            )

    def _add(self, cell: _Cell, active: ActiveRange | None) -> None:
        if active is None or cell.active is None:
            cell.active = None
        else:
            cell.active = ActiveRange(
                cell.active.fewest + active.fewest, cell.active.most + active.most
            )
