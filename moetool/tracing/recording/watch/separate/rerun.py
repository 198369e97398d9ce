"""Run a block again on the arguments of its call, with stand-ins for every module that it calls.

The stand-in of an expert notes its rows and returns a vector that names the expert. The stand-in of
any other part, such as the router, returns what the part returned in the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import is_called
from moetool.errors import UntraceableError
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.watch.separate.stand_ins import (
    StandIn,
    copy_output,
    replaced,
    without_hooks,
)


@dataclass(frozen=True)
class Part:
    """A module that a block calls next to its experts: its router, or shared experts.

    Attributes:
        path: Path within the block.
        parent: The module that holds it: the block, or a list within it.
        name: Its name there.
        module: The module itself.
    """

    path: str
    parent: nn.Module
    name: str
    module: nn.Module


@dataclass(frozen=True)
class Block:
    """A block with a list of experts.

    Attributes:
        path: Path within the model.
        module: The block itself.
        container: The list of experts.
        parts: Everything else that it may call.
    """

    path: str
    module: nn.Module
    container: nn.Module
    parts: tuple[Part, ...]

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts in their container, by id."""
        return [name for name, _ in self.container.named_children()]

    def unreadable(self, because: str) -> UntraceableError:
        """Return the error for a block whose routing can't be read."""
        return UntraceableError(
            f"Can't tell what {self.path} routes: {because}.",
            hint="moetool records blocks that send each token's hidden state to its experts and "
            "add up their outputs by weight.",
        )


@dataclass(frozen=True)
class Returned:
    """The output of a part in one call, and whether that was the very object it was given."""

    output: Any
    is_input: bool


@dataclass(frozen=True)
class BlockCall:
    """Everything that hooks saw of one call of a block.

    Attributes:
        given: The hidden states that it was called with. # (..., hidden_size)
        hidden: A copy made before it ran. # (..., hidden_size)
        received: By name of expert, the rows of each of its calls. # each (..., hidden_size)
        returned: By path of part, the outputs of its calls in order.
    """

    given: torch.Tensor
    hidden: torch.Tensor
    received: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    returned: dict[str, list[Returned]] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """The outcome of one run with stand-ins.

    Attributes:
        output: The block's output, made of the experts' vectors. # (num_slots, hidden_size)
        rows: By name of expert, the rows of each of its calls. # each (..., hidden_size)
    """

    output: torch.Tensor
    rows: Mapping[str, list[torch.Tensor]]


def find_block(model: nn.Module, layer: MoeLayer) -> Block:
    """Return the block of a routed layer whose experts lie in a list."""
    module = model.get_submodule(layer.block_path)
    container = model.get_submodule(layer.experts_path)
    return Block(layer.block_path, module, container, tuple(_find_parts(module, container)))


def _find_parts(parent: nn.Module, container: nn.Module, *, prefix: str = "") -> Iterator[Part]:
    """Yield what a block may call next to its experts; of lists, which are not called, the items."""
    for name, child in parent.named_children():
        if child is container:
            continue
        if is_called(child):
            yield Part(f"{prefix}{name}", parent, name, child)
        else:
            yield from _find_parts(child, container, prefix=f"{prefix}{name}.")


class Rerun:
    """Runs a block again after one of its calls.

    Args:
        call: The call as hooks saw it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(
        self, block: Block, call: BlockCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._block = block
        self._call = call
        self._args = args
        self._kwargs = kwargs

    def run(
        self, states: torch.Tensor, *, length: float, first: int = 0, added: float = 0
    ) -> Observed:
        """Run the block on hidden states of the shape of those that it was called with.

        Args:
            states: The hidden states. # (..., hidden_size)
            length: Expert `first + i` returns a vector with this number in column i, else zeros.
            first: The experts before return zeros alone.
            added: Parts that return hidden states fill them with this number.

        Raises:
            UntraceableError: The block can't be run again, or calls its parts in another order.
        """
        rows: dict[str, list[torch.Tensor]] = {}
        given, given_now = self._call.given, states.clone()
        args = tuple(given_now if value is given else value for value in self._args)
        kwargs = {
            name: given_now if value is given else value for name, value in self._kwargs.items()
        }
        block = self._block
        with ExitStack() as stack:
            experts = self._make_experts(rows, first=first, length=length)
            stack.enter_context(replaced(block.container, experts))
            stack.enter_context(without_hooks(block.container))
            for part in block.parts:
                stand_in = StandIn(part.module, self._repeat(part, states, added=added))
                stack.enter_context(replaced(part.parent, {part.name: stand_in}))
            try:
                output = block.module.forward(*args, **kwargs)
            except UntraceableError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise block.unreadable(f"a second run of it ends in {error!r}") from error
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, torch.Tensor) and value.numel() == states.numel():
                return Observed(value.reshape(-1, states.shape[-1]), rows)
        raise block.unreadable("it does not return hidden states")

    def _make_experts(
        self, rows: dict[str, list[torch.Tensor]], *, first: int, length: float
    ) -> dict[str, nn.Module]:
        """Return modules that note their rows and return a vector that names them."""

        def make(index: int, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
            def forward(received: torch.Tensor) -> torch.Tensor:
                rows.setdefault(name, []).append(received)
                output = torch.zeros_like(received)  # (..., hidden_size)
                if 0 <= index - first < received.shape[-1]:
                    output[..., index - first] = length
                return output

            return forward

        named = enumerate(self._block.container.named_children())
        return {name: StandIn(expert, make(index, name)) for index, (name, expert) in named}

    def _repeat(self, part: Part, states: torch.Tensor, *, added: float) -> Callable[..., Any]:
        """Return a function that returns what a part did, call by call.

        A part that returned hidden states is not a router but, for example, a shared expert: it returns
        only the number `added`, and must have been called with the block's own hidden states, not
        with its experts' sum.
        """
        block, width = self._block, states.shape[-1]
        returned = iter(self._call.returned.get(part.path, ()))

        def is_hidden(value: object) -> bool:
            return (
                isinstance(value, torch.Tensor)
                and value.shape[-1:] == (width,)
                and value.numel() == states.numel()
            )

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(returned, None)
            if call is None:
                raise block.unreadable("a second run calls other parts of it")
            if call.is_input:
                return args[0]
            values = call.output if isinstance(call.output, tuple) else (call.output,)
            if not any(map(is_hidden, values)):
                return copy_output(call.output)
            if width == len(block.expert_names):
                raise block.unreadable("it has as many experts as its hidden states are wide")
            inputs = [value for value in (*args, *kwargs.values()) if is_hidden(value)]
            if not inputs or not all(
                torch.equal(value.to(states.dtype).reshape(states.shape), states)
                for value in inputs
            ):
                raise block.unreadable(f"its {part.path} changes what goes into or out of experts")
            filled = tuple(
                torch.full_like(value, added) if is_hidden(value) else copy_output(value)
                for value in values
            )
            return filled if isinstance(call.output, tuple) else filled[0]

        return forward
