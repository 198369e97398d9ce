"""The tokens that a layer's block received, for calls whose own batch does not show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from moetool.tracing.recording.call_tokens import CallTokens
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.token_masks import is_token_mask, read_token_mask


class BlockShapes:
    """Notes the shapes of the hidden states that each layer's block was last called with."""

    def __init__(self) -> None:
        # Of each floating tensor among the arguments, all dimensions except the last.
        self._shapes: dict[MoeLayer, list[torch.Size]] = {}

    def install(self, model: nn.Module, layers: Iterable[MoeLayer], hooks: Hooks) -> None:
        """Place the hooks."""
        for layer in layers:
            block = model.get_submodule(layer.block_path)
            hooks.before(block, self._note(layer), with_kwargs=True)
            if layer.rule is not RoutingRule.RECEIVED:
                # Reported after the block has run, which may add tokens to those that it gets.
                hooks.after(block, self._note_output(layer))
        hooks.on_removal(self._shapes.clear)

    def find(self, layer: MoeLayer, *, num_tokens: int) -> torch.Size:
        """Return the batch shape of the hidden states that hold this number of tokens.

        They are what the block received, or else returned. Without either it is `(num_tokens,)`.
        """
        shapes = self._shapes.get(layer, ())
        return next((s for s in shapes if s.numel() == num_tokens), torch.Size((num_tokens,)))

    def _note(self, layer: MoeLayer) -> Any:
        def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._shapes[layer] = _list_shapes((*args, *kwargs.values()))

        return hook

    def _note_output(self, layer: MoeLayer) -> Any:
        def hook(_block: nn.Module, _args: object, output: Any) -> None:
            self._shapes[layer] = [*self._shapes.get(layer, ()), *_list_shapes((output,))]

        return hook


def number_tokens(shape: torch.Size, mask: torch.Tensor | None, *, path: str) -> CallTokens:
    """Return the tokens of hidden states, numbered along their own axes.

    The first dimension is the batch, and positions run through all others. With a single dimension
    every row is a token of the same batch row.

    Args:
        shape: All dimensions of the hidden states except the last.
        mask: The attention mask of the call; None if it has none.
        path: The block that received them, for the error.

    Raises:
        UntraceableError: The mask marks pads of other tokens than these.
    """
    num_rows = shape[0] if len(shape) > 1 else 1
    real = np.ones((num_rows, shape.numel() // max(num_rows, 1)), dtype=bool)
    if mask is not None:
        marked = read_token_mask(mask) if is_token_mask(mask) else None
        if marked is not None and marked.shape == real.shape:
            real = marked
        elif marked is None or not marked.all():
            name = path or "The module"
            raise UntraceableError(
                f"Can't tell pads from tokens: {name} received tokens of shape {tuple(shape)}, and "
                f"the attention mask is {tuple(mask.shape)}.",
                hint="Leave out padding, and call the model without a mask.",
            )
    row, column = np.nonzero(real)
    return CallTokens(
        num_slots=real.size,
        slots=row * real.shape[1] + column,
        batch_index=row.astype(np.int32),
        position=(np.cumsum(real, axis=1) - 1)[real].astype(np.int32),
    )


def _list_shapes(values: Iterable[Any]) -> list[torch.Size]:
    return [
        value.shape[:-1]
        for value in _iter_tensors(values)
        if value.is_floating_point() and value.dim()
    ]


def _iter_tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, and those in their lists and mappings."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _iter_tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _iter_tensors(value)
