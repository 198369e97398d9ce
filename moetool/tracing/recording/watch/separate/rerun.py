"""Run a block again on the arguments of its call, with stand-ins for every module that it calls.

The stand-in of an expert notes its rows and returns a vector that names the expert. The stand-in of
any other part, such as the router, returns what the part returned in the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moetool.tracing.recording.watch.separate.block import Block, BlockCall, Part
from moetool.tracing.recording.watch.separate.random_states import restore_states
from moetool.tracing.recording.watch.separate.stand_ins import (
    as_before,
    copy_output,
    find_rows,
    run_again,
)


@dataclass(frozen=True)
class Observed:
    """The outcome of one run with stand-ins.

    Attributes:
        output: The block's output, made of the experts' vectors. # (num_slots, hidden_size)
        rows: By path of expert, the rows of each of its calls. # each (..., hidden_size)
    """

    output: torch.Tensor
    rows: Mapping[str, list[torch.Tensor]]


def spread_lengths(vectors: torch.Tensor, length: float) -> torch.Tensor:
    """Return vectors with a different factor in neighbouring columns: 1, 2, 4 or 8 times a length."""
    factors = torch.tensor([1.0, 2.0, 4.0, 8.0]).to(vectors).repeat(vectors.shape[-1] // 4 + 1)
    return vectors * length * factors[: vectors.shape[-1]]


class Rerun:
    """Runs a block again after one of its calls.

    Args:
        block: It is as it was after each run.
        call: Its call as hooks saw it.
    """

    def __init__(self, block: Block, call: BlockCall) -> None:
        self._block = block
        self._call = call

    def run(
        self,
        states: torch.Tensor,
        *,
        length: float,
        first: int = 0,
        added: float = 0,
        is_uneven: bool = False,
        outputs: torch.Tensor | None = None,
    ) -> Observed:
        """Run the block on hidden states of the shape of those that it was called with.

        Args:
            states: The hidden states. # (..., hidden_size)
            length: Expert `first + i` returns a vector with this number in column i, else zeros.
            first: The experts before return zeros alone.
            added: Parts that return hidden states fill them with this number.
            is_uneven: Give the vectors different lengths, as `spread_lengths` does.
            outputs: Returned by the experts instead. # (num_experts, hidden_size)

        Raises:
            UntraceableError: The block can't be run again, or calls its parts in another order.
        """
        rows: dict[str, list[torch.Tensor]] = {}
        block, given = self._block, states.clone()
        stand_ins: list[tuple[Part, Callable[..., Any]]] = []
        for index, (expert,) in enumerate(block.experts):
            vector = states.new_zeros(states.shape[-1])  # (hidden_size,)
            if outputs is not None:
                vector = outputs[index]
            elif 0 <= index - first < len(vector):
                vector[index - first] = length
                vector = spread_lengths(vector, 1) if is_uneven else vector
            stand_ins.append((expert, self._stand_in_for(expert, rows, vector, given, states)))
        stand_ins += [(part, self._repeat(part, states, added=added)) for part in block.parts]
        output = run_again(block, self._call, given, stand_ins)
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, torch.Tensor) and value.numel() == states.numel():
                return Observed(value.reshape(-1, states.shape[-1]), rows)
        raise block.unreadable("it does not return hidden states")

    def _stand_in_for(
        self,
        expert: Part,
        rows: dict[str, list[torch.Tensor]],
        vector: torch.Tensor,
        given: torch.Tensor,
        states: torch.Tensor,
    ) -> Callable[..., torch.Tensor]:
        """Return a function that notes its rows and returns a vector for each."""
        returned = iter(self._call.returned.get(expert.path, ()))

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            received = find_rows(args, kwargs)
            assert received is not None
            rows.setdefault(expert.path, []).append(as_before(received, given, states))
            output = torch.zeros_like(received)  # (..., hidden_size)
            if received.shape[-1] == len(vector):
                output += vector.to(received)
            call = next(returned, None)
            if call is not None:
                restore_states(self._call.devices, call.states)
            return output

        return forward

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
            restore_states(self._call.devices, call.states)
            if call.is_input:
                return args[0]
            values = call.output if isinstance(call.output, tuple) else (call.output,)
            if not any(map(is_hidden, values)):
                return copy_output(call.output)
            if width == len(block.experts):
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
