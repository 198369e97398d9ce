"""One call of a module that holds experts, and the same call with other rows or weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.tracing.recording.watch.operations.observer import NotObservedError
from moetool.tracing.recording.watch.separate.random_states import restore_states


class NotProvenError(NotObservedError):
    """The experts do something else with what they received than the decision says."""


@dataclass(frozen=True)
class SeenCall:
    """A call of a module as it was seen.

    Attributes:
        module: The one that was called.
        forward: Its own forward.
        args: Copies of what it received.
        kwargs: The same.
        given: The tensors themselves, by the identity of their copies.
        output: The tensor of rows that it returned. # (..., width)
        random: States of the random generators before it ran.
        devices: Those of the generators.
    """

    module: nn.Module
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: Mapping[int, torch.Tensor]
    output: torch.Tensor
    random: list[torch.Tensor]
    devices: list[torch.device]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors that it received."""
        values = (*self.args, *self.kwargs.values())
        return [value for value in values if isinstance(value, torch.Tensor)]


@dataclass(frozen=True)
class ExpertsCall:
    """A call with hidden states, ids and weights among what the module received.

    Attributes:
        seen: The call.
        rows: # (..., width)
        ids: # (..., top_k)
        weights: # (..., top_k)
    """

    seen: SeenCall
    rows: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Number of tokens, each of which has a row."""
        return self.rows.numel() // self.rows.shape[-1]

    @property
    def top_k(self) -> int:
        """Number of experts of each token."""
        return self.ids.numel() // self.num_tokens

    @property
    def decision(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights, each # (num_tokens, top_k)."""
        shape = (self.num_tokens, self.top_k)
        return self.ids.reshape(shape), self.weights.reshape(shape)

    def run(self, weights: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the module makes of other weights, and of other rows if they are given.

        Args:
            weights: # (num_tokens, top_k)
            rows: # (num_tokens, width)

        Returns:
            In double precision. # (num_tokens, width)
        """
        others = {
            id(self.rows): (self.rows if rows is None else rows.view_as(self.rows)).clone(),
            id(self.weights): weights.to(self.weights).reshape(self.weights.shape).clone(),
        }

        def replace(value: Any) -> Any:
            other = others.get(id(value), value)
            # Modules may write to what they receive.
            is_copied = isinstance(other, torch.Tensor) and other is value
            return other.clone() if is_copied else other

        restore_states(self.seen.devices, self.seen.random)
        output = self.seen.forward(
            *map(replace, self.seen.args),
            **{name: replace(value) for name, value in self.seen.kwargs.items()},
        )
        found = find_rows(output, num_tokens=self.num_tokens)
        if found is None:
            raise NotProvenError("they return no row for each token")
        return found.detach().reshape(self.num_tokens, -1).double()


def find_rows(output: Any, *, num_tokens: int) -> torch.Tensor | None:
    """Return the first tensor of an output that has a row for each token."""
    for value in output if isinstance(output, tuple | list) else (output,):
        if (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dim() >= 2
            and value.numel() == num_tokens * value.shape[-1]
        ):
            return value
    return None


def list_candidates(seen: SeenCall, *, num_experts: int) -> Iterator[ExpertsCall]:
    """Yield the ways to take what a module received as hidden states, ids and weights."""
    numbers = [value for value in seen.tensors if value.is_floating_point() and value.dim() >= 2]
    for ids in seen.tensors:
        if ids.is_floating_point() or ids.dtype is torch.bool or ids.dim() < 2 or not ids.numel():
            continue
        if int(ids.min()) < 0 or int(ids.max()) >= num_experts or ids.shape[-1] > num_experts:
            continue
        num_tokens = ids.numel() // ids.shape[-1]
        for weights in _of_shape(numbers, ids.shape):
            for rows in numbers:
                if rows is not weights and rows.numel() == num_tokens * rows.shape[-1]:
                    yield ExpertsCall(seen, rows, ids, weights)


def _of_shape(tensors: Sequence[torch.Tensor], shape: torch.Size) -> list[torch.Tensor]:
    return [value for value in tensors if value.shape == shape]
