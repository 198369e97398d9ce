"""Experts that a parallel plan shares among processes, checked to carry out what is recorded.

Under a plan of transformers the experts module is called with the decision among all experts, which
is recorded. The plan's wrapper of its forward then calls the module's own forward with the part of
the decision that concerns the experts that this process holds.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any, NoReturn

import torch
from torch import nn

from moetool.anatomy.routing.rules import stacked_parameters
from moetool.anatomy.routing.shards import (
    count_shards,
    find_held,
    is_distributed,
    is_of_plans,
    is_wrapped,
)
from moetool.errors import UntraceableError
from moetool.tracing.recording.watch.decision import find_decision

Function = Callable[..., Any]


class SharedExpertsCheck:
    """Compares, in the first call, what this process's experts receive with the whole decision.

    They have to receive each choice of an expert that this process holds, under its number among
    them and with the same weight. Every other choice has to have weight 0 and none of these numbers.
    Where each process holds some of every expert, they have to receive the whole decision.

    Attributes:
        is_done: Whether nothing is left to compare. True from the start for experts that no plan
            shares.

    Args:
        experts: The experts module.
        path: Its path in the model.
    """

    def __init__(self, experts: nn.Module, *, path: str) -> None:
        is_shared = any(is_distributed(parameter) for parameter in experts.parameters())
        self.is_done = not (is_shared or is_wrapped(experts))
        self._experts = experts
        self._path = path
        self._held = _find_held_experts(experts)
        self._whole: tuple[torch.Tensor, torch.Tensor] | None = None
        self._restore: list[Callable[[], None]] = []

    def begin(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Take what the module is called with, before its forward.

        Args:
            ids: # (num_slots, top_k)
            weights: # (num_slots, top_k)
        """
        self._whole = (ids, weights)
        for own, put in list(_find_own_forwards(self._experts)):
            put(self._watch(own))
            self._restore.append(functools.partial(put, own))

    def end(self, _experts: nn.Module, _args: object, _output: object) -> None:
        """Refuse experts that ran unseen, after the module's forward.

        Raises:
            UntraceableError: The module's own forward was not called.
        """
        was_seen = self._whole is None
        self.remove()
        if not self.is_done and not was_seen:
            self._refuse("ran unseen")
        self.is_done = True

    def remove(self) -> None:
        """Put every function back in its place."""
        while self._restore:
            self._restore.pop()()
        self._whole = None

    def _watch(self, own: Function) -> Function:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._compare(*find_decision([*args, *kwargs.values()], path=self._path))
            return own(*args, **kwargs)

        disable: Callable[[Function], Function] = torch.compiler.disable
        return disable(watched)

    def _compare(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        if self._whole is None:
            self._refuse("ran twice in one call")
        whole_ids, whole_weights = self._whole
        self._whole = None
        if ids.shape != whole_ids.shape:
            self._refuse("received other tokens than the module")
        here, first = torch.ones_like(whole_ids, dtype=torch.bool), 0
        if self._held is not None:
            first = self._held.start
            here = (whole_ids >= first) & (whole_ids < self._held.stop)
        if not torch.equal(ids[here], whole_ids[here] - first):
            self._refuse("received other ids than the module")
        if not torch.equal(weights[here], whole_weights[here]):
            self._refuse("received other weights than the module")
        if self._held is not None:
            others = ids[~here]
            if weights[~here].any() or ((others >= 0) & (others < len(self._held))).any():
                self._refuse("received choices of experts that it does not hold")

    def _refuse(self, reason: str) -> NoReturn:
        raise UntraceableError(
            f"{self._path} is shared among processes, and this one's part of it {reason}.",
            hint='Load the model with DistributedConfig(ep_implementation="all_reduce"), or with '
            "--parallel, and call it under torch.inference_mode().",
        )


def _find_held_experts(experts: nn.Module) -> range | None:
    """Return the ids of the experts that this process holds; None if it holds some of each."""
    stacked = stacked_parameters(experts)
    if count_shards(stacked) == 1:
        return None
    return next(find_held(parameter) for parameter in stacked if count_shards([parameter]) > 1)


def _find_own_forwards(module: nn.Module) -> Iterator[tuple[Function, Callable[[Function], None]]]:
    """Yield the module's own forward from each place where a plan's wrapper keeps it.

    These are variables of the wrapper, and attributes of objects of the plans' package in them.

    Yields:
        The function, and a way to put another one in its place.
    """
    waiting: list[object] = [vars(module).get("forward")]
    seen: set[int] = set()
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen or not is_of_plans(holder):
            continue
        seen.add(id(holder))
        if isinstance(holder, FunctionType):
            for cell in holder.__closure__ or ():
                if _is_own_forward(cell.cell_contents, module):
                    yield cell.cell_contents, functools.partial(_fill, cell)
                else:
                    waiting.append(cell.cell_contents)
        else:
            for name, value in list(vars(holder).items()):
                if _is_own_forward(value, module):
                    yield value, functools.partial(setattr, holder, name)
                else:
                    waiting.append(value)


def _is_own_forward(value: object, module: nn.Module) -> bool:
    return inspect.ismethod(value) and value.__self__ is module


def _fill(cell: CellType, function: Function) -> None:
    cell.cell_contents = function
