"""Run a block again while its operations are observed, and leave it as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from moetool.tracing.recording.watch.operations.observer import Observer
from moetool.tracing.recording.watch.operations.products import Product
from moetool.tracing.recording.watch.separate.random_states import (
    kept_states,
    list_devices,
    restore_states,
)
from moetool.tracing.recording.watch.separate.stand_ins import kept_as_it_is, without_hooks
from moetool.tracing.recording.watch.weighted_rows import WeightTrail

Labels = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class BlockCall:
    """The call of a block that is run again.

    Attributes:
        given: The hidden states that it was called with. # (..., hidden_size)
        hidden: A copy made before it ran. # (..., hidden_size)
        random: States of the random generators before it ran.
    """

    given: torch.Tensor
    hidden: torch.Tensor
    random: list[torch.Tensor]

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.hidden.numel() // self.hidden.shape[-1]


@dataclass(frozen=True)
class ObservedRun:
    """One observed run of a block.

    Attributes:
        observer: Everything that was seen.
        start: The hidden states, to which gradients come back. # (..., hidden_size)
        output: The block's output. # (num_tokens, hidden_size)
        parts: Outputs of the block's children that hold a row for each token, and where gradients
            leave them.
        outputs: Outputs of all other modules, by path in the block.
        lengths: Numbers of tokens: those of the call, and of a sequence.
    """

    observer: Observer
    start: torch.Tensor
    output: torch.Tensor
    parts: Sequence[tuple[torch.Tensor, GradientEdge]]
    outputs: Mapping[str, Any]
    lengths: frozenset[int]

    @property
    def firsts(self) -> list[Product]:
        """The products in which experts take in rows."""
        return [product for product in self.observer.products if not product.inner]

    @property
    def finals(self) -> list[Product]:
        """The last product of each expert."""
        products = self.observer.products
        inner = frozenset().union(*(product.inner for product in products))
        return [product for product in products if product.number not in inner]

    @property
    def states(self) -> list[torch.Tensor]:
        """Rows of each token: its hidden state, and what parts of the block return for it. # each (num_tokens, width)."""
        values = (self.start, *(part for part, _ in self.parts))
        return [value.detach().reshape(len(self.output), -1) for value in values]

    @property
    def places(self) -> list[tuple[Any, int]]:
        """Where each token has a row, as gradients reach it, and the width of that row."""
        return [
            (self.start, self.start.shape[-1]),
            *((edge, part.shape[-1]) for part, edge in self.parts),
        ]


def run_observed(
    block: nn.Module,
    call: BlockCall,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    labels: Labels,
    num_experts: int,
    scaled: Collection[int] = (),
    pinned: Mapping[int, torch.Tensor] | None = None,
    keeps_outputs: bool = False,
    shares_layers: bool = False,
) -> ObservedRun:
    """Run a block again on the arguments of its call, with the same random numbers.

    Args:
        call: What was kept of the call.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        labels: Parameters of experts, and the expert of each of their numbers.
        num_experts: Number of experts.
        scaled: Numbers of the products whose output is multiplied by -2.
        pinned: By number, outputs that products return instead of theirs.
        keeps_outputs: Whether to keep copies of the products' outputs.
        shares_layers: Whether experts are updates of layers that they share.

    Raises:
        NotObservedError: An operation on the weights of experts is not understood.
        ValueError: The block returns no hidden states.
    """
    width = call.hidden.shape[-1]
    num_tokens = call.num_tokens
    experts = {id(parameter) for parameter, _ in labels}
    with ExitStack() as stack:
        stack.enter_context(replaying(block, call.random))
        parts: list[tuple[torch.Tensor, GradientEdge]] = []
        outputs: dict[str, Any] = {}
        _keep_outputs(block, parts, outputs, experts=experts, num_tokens=num_tokens)
        stack.enter_context(torch.enable_grad())
        start = call.hidden.clone().requires_grad_()
        # Not the leaf itself, which blocks could not change in place.
        states = start.clone()

        def replace(value: Any) -> Any:
            return states if value is call.given else value

        lengths = frozenset({num_tokens, call.hidden.shape[-2]})
        trail = WeightTrail(num_experts, width)
        trail.add_scores(
            value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
        )
        observer = Observer(
            labels,
            states,
            trail=trail,
            lengths=lengths,
            scaled=scaled,
            pinned=pinned,
            keeps_outputs=keeps_outputs,
            shares_layers=shares_layers,
        )
        with observer:
            output = block.forward(
                *map(replace, args), **{name: replace(value) for name, value in kwargs.items()}
            )
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, torch.Tensor) and value.numel() == start.numel():
                rows = value.reshape(-1, width)
                return ObservedRun(observer, start, rows, parts, outputs, lengths)
    raise ValueError("it does not return hidden states")


def _keep_outputs(
    block: nn.Module,
    parts: list[tuple[torch.Tensor, GradientEdge]],
    outputs: dict[str, Any],
    *,
    experts: Collection[int],
    num_tokens: int,
) -> None:
    """Place hooks that keep what the modules next to the experts return."""

    def keep(path: str, *, is_part: bool) -> Any:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            outputs[path] = output
            if (
                is_part
                and isinstance(output, torch.Tensor)
                and output.grad_fn is not None
                and output.numel() == num_tokens * output.shape[-1]
            ):
                parts.append((output, get_gradient_edge(output)))

        return hook

    for path, module in block.named_modules():
        if path and not any(id(parameter) in experts for parameter in module.parameters()):
            module.register_forward_hook(keep(path, is_part="." not in path))


@contextmanager
def replaying(block: nn.Module, random: list[torch.Tensor]) -> Iterator[None]:
    """Let a block run again, without gradients and hooks, and leave it as it was.

    Args:
        block: Any module.
        random: States of the random generators that it draws from.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        devices = list_devices(block)
        stack.enter_context(kept_states(devices))
        restore_states(devices, random)
        for module in block.modules():
            stack.enter_context(kept_as_it_is(module))
            stack.enter_context(without_hooks(module))
        yield
