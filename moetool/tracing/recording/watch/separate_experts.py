"""Decisions of blocks that call each expert as a module of its own, found by running them again.

No tensor that passes such a block names the tokens: an expert receives rows, gathered in whatever
way the block's author chose. So after each call the block is run again with stand-ins: its router
repeats what it returned, and each expert returns a vector that names it. What the block makes of
these vectors is each token's weights. Then it is run once more on hidden states that carry the
numbers of their tokens, which the experts read. The experts themselves do not run again, and the
runs are checked against the first one: every expert must have received just the rows that the
stand-ins saw, and the weights must not depend on the hidden states but through the router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import UntraceableError
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.compiled import as_written
from moetool.tracing.recording.watch.decision import Decision, Tell
from moetool.tracing.recording.watch.routers import find_scores
from moetool.tracing.recording.watch.stand_ins import (
    StandIn,
    copy_output,
    kept_as_it_is,
    replaced,
    without_hooks,
)
from moetool.tracing.recording.watch.token_tags import EMPTY, read_tags, tag_tokens


@dataclass(frozen=True)
class _Part:
    """A module that a block calls next to its experts: its router, or shared experts.

    Attributes:
        path: Within the block.
        parent: The module that holds it: the block, or a list within it.
        name: Its name there.
        module: The module.
    """

    path: str
    parent: nn.Module
    name: str
    module: nn.Module


@dataclass(frozen=True)
class _Returned:
    """What a part returned in one call, and whether that was its very input."""

    output: Any
    is_input: bool


class SeparateExpertsWatch:
    """Runs a block again with stand-ins for its parts, and reads what they saw."""

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.output_factor: float | None = 1.0
        self.router_path: str | None = None
        self._layer = layer
        self._keep_scores = keep_scores
        self._handles: list[RemovableHandle] = []
        self._container: nn.Module = nn.Module()
        self._parts: list[_Part] = []
        # Of this call of the block: the hidden states as they came, and a copy; what experts
        # received; what parts returned, by their path.
        self._given: torch.Tensor | None = None
        self._hidden: torch.Tensor = torch.empty(0)
        self._received: dict[str, list[torch.Tensor]] = {}
        self._returned: dict[str, list[_Returned]] = {}
        self._is_sum_checked = False

    def install(self, model: nn.Module, tell: Tell) -> None:
        """Place the hooks."""
        register = self._handles.append
        block = model.get_submodule(self._layer.block_path)
        self._container = model.get_submodule(self._layer.experts_path)
        self._parts = list(_find_parts(block, self._container))
        for name, expert in self._container.named_children():
            hook = as_written(self._keep_rows(name))
            register(expert.register_forward_pre_hook(hook, with_kwargs=True))
        for part in self._parts:
            register(part.module.register_forward_hook(as_written(self._keep_output(part))))
        register(block.register_forward_pre_hook(as_written(self._begin), with_kwargs=True))
        register(block.register_forward_hook(as_written(self._end(tell)), with_kwargs=True))

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    def _forget(self) -> None:
        self._given = None
        self._hidden = torch.empty(0)
        self._received.clear()
        self._returned.clear()

    def _begin(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        self._given = next(tensors, None)
        if self._given is None or not self._given.is_floating_point():
            raise self._unreadable("it is not called with hidden states first")
        self._hidden = self._given.detach().clone()

    def _keep_rows(self, name: str) -> Any:
        def hook(_expert: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) != 1 or kwargs:
                raise self._unreadable("its experts take more than hidden states")
            self._received.setdefault(name, []).append(args[0])

        return hook

    def _keep_output(self, part: _Part) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            returned = _Returned(copy_output(output), is_input=bool(args) and output is args[0])
            self._returned.setdefault(part.path, []).append(returned)

        return hook

    def _end(self, tell: Tell) -> Any:
        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object
        ) -> None:
            devices = [self._hidden.device] if self._hidden.is_cuda else []
            try:
                # The model must miss no random number, and find nothing of the block's changed.
                with torch.no_grad(), torch.random.fork_rng(devices), kept_as_it_is(block):
                    decision = self._probe(block, args, kwargs)
            finally:
                self._forget()
            tell(self._layer, decision)

        return hook

    def _probe(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Decision:
        """Run the block with stand-ins and return the decision that they saw."""
        hidden, num_experts = self._hidden, self._layer.num_experts
        width, tagged = hidden.shape[-1], tag_tokens(hidden)
        weights = hidden.new_zeros(hidden.numel() // width, num_experts)
        tiny = torch.finfo(hidden.dtype).smallest_normal
        seen: dict[str, list[torch.Tensor]] = {}
        for start in range(0, num_experts, width):

            def run(states: torch.Tensor, length: float, added: float = 0) -> torch.Tensor:
                seen.clear()
                experts = self._stand_ins(seen, first=start, length=length)  # noqa: B023
                parts = [(part, self._repeat(part, states, added=added)) for part in self._parts]
                output = self._run(block, args, kwargs, states=states, experts=experts, parts=parts)
                return output.reshape(-1, width)

            if not self._is_sum_checked:
                self._check_sum(run(hidden, 1), run(hidden, 1, 1), run(hidden, 0, 1))
            found = run(hidden, 1)
            # Vectors of another length come back as other multiples of the weights, if those are
            # all, and if they depend on the hidden states through the router alone.
            if not torch.allclose(-2 * found, run(tagged, -2), rtol=0, atol=tiny):
                raise self._unreadable("it does more with its experts' outputs than weight them")
            weights[:, start : start + width] = found[:, : num_experts - start]
        return self._decide(weights, self._count_rows(seen))

    def _check_sum(self, alone: torch.Tensor, both: torch.Tensor, others: torch.Tensor) -> None:
        """Check, once, that what other parts return is added to what the experts return."""
        self._is_sum_checked = True
        rounding = 8 * torch.finfo(both.dtype).eps * (both.abs() + others.abs()).double()
        if bool(((both.double() - others.double() - alone.double()).abs() > rounding).any()):
            raise self._unreadable("it does more with its experts' outputs than weight them")

    def _run(
        self,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        states: torch.Tensor,
        experts: Mapping[str, nn.Module],
        parts: Sequence[tuple[_Part, Callable[..., Any]]],
    ) -> torch.Tensor:
        """Return what the block makes of these hidden states with stand-ins for its parts."""
        given, given_now = self._given, states.clone()
        args = tuple(given_now if value is given else value for value in args)
        kwargs = {name: given_now if value is given else value for name, value in kwargs.items()}
        with ExitStack() as stack:
            stack.enter_context(replaced(self._container, experts))
            stack.enter_context(without_hooks(self._container))
            for part, repeat in parts:
                stand_in = {part.name: StandIn(part.module, repeat)}
                stack.enter_context(replaced(part.parent, stand_in))
            try:
                output = block.forward(*args, **kwargs)
            except UntraceableError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self._unreadable(f"a second run of it ends in {error!r}") from error
        for value in output if isinstance(output, tuple) else (output,):
            if isinstance(value, torch.Tensor) and value.numel() == states.numel():
                return value
        raise self._unreadable("it does not return hidden states")

    def _stand_ins(
        self, seen: dict[str, list[torch.Tensor]], *, first: int, length: float
    ) -> dict[str, nn.Module]:
        """Return modules that note their rows and return a vector that names them."""

        def make(index: int, name: str) -> Any:
            def forward(rows: torch.Tensor) -> torch.Tensor:
                seen.setdefault(name, []).append(rows)
                output = torch.zeros_like(rows)
                if 0 <= index - first < rows.shape[-1]:
                    output[..., index - first] = length
                return output

            return forward

        named = enumerate(self._container.named_children())
        return {name: StandIn(expert, make(index, name)) for index, (name, expert) in named}

    def _repeat(self, part: _Part, states: torch.Tensor, *, added: float) -> Callable[..., Any]:
        """Return a function that returns what a part did, call by call.

        Where that is hidden states it is no router but, say, a shared expert, and returns nothing
        but the number `added`. It must have been called with the block's own hidden states then,
        and not with its experts' sum.
        """
        width = states.shape[-1]
        returned = iter(self._returned.get(part.path, ()))

        def is_hidden(value: object) -> bool:
            return (
                isinstance(value, torch.Tensor)
                and value.shape[-1:] == (width,)
                and value.numel() == states.numel()
            )

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(returned, None)
            if call is None:
                raise self._unreadable("a second run calls other parts of it")
            if call.is_input:
                return args[0]
            values = call.output if isinstance(call.output, tuple) else (call.output,)
            if not any(map(is_hidden, values)):
                return copy_output(call.output)
            if width == self._layer.num_experts:
                raise self._unreadable("it has as many experts as its hidden states are wide")
            inputs = [value for value in (*args, *kwargs.values()) if is_hidden(value)]
            if not inputs or not all(
                torch.equal(value.to(states.dtype).reshape(states.shape), states)
                for value in inputs
            ):
                raise self._unreadable(f"its {part.path} changes what goes into or out of experts")
            filled = tuple(
                torch.full_like(value, added) if is_hidden(value) else copy_output(value)
                for value in values
            )
            return filled if isinstance(call.output, tuple) else filled[0]

        return forward

    def _count_rows(self, seen: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
        """Return how often each token reached each expert, if it did so in the first run.

        Args:
            seen: The tagged rows that the stand-ins received.

        Returns:
            # (num_slots, num_experts)
        """
        states = self._hidden.reshape(-1, self._hidden.shape[-1])
        num_slots, num_experts = len(states), self._layer.num_experts
        received, tagged, lengths = [], [], []
        for name, _ in self._container.named_children():
            first, second = (
                [rows.detach().reshape(-1, rows.shape[-1]) for rows in calls.get(name, ())]
                for calls in (self._received, seen)
            )
            if [len(rows) for rows in first] != [len(rows) for rows in second]:
                raise self._unreadable("a second run sent tokens to other experts")
            received += first
            tagged += second
            lengths.append(sum(map(len, first)))
        if not received:
            return torch.zeros(num_slots, num_experts, dtype=torch.int64, device=states.device)
        rows = torch.cat(received).to(states.device)  # (num_rows, hidden_size)
        tokens = read_tags(torch.cat(tagged)).to(states.device)  # (num_rows,)
        is_empty = tokens == EMPTY
        is_token = (tokens >= 0) & (tokens < num_slots)
        if bool(~(is_token | is_empty).all()) or bool((rows[is_empty] != 0).any()):
            raise self._unreadable("its experts receive other rows than its hidden states")
        tokens = tokens[is_token]
        if not torch.equal(rows[is_token], states[tokens].to(rows.dtype)):
            raise self._unreadable("a second run sent tokens to other experts")
        sizes = torch.tensor(lengths, device=states.device)
        experts = torch.arange(num_experts, device=states.device).repeat_interleave(sizes)
        slots = tokens * num_experts + experts[is_token]
        return torch.bincount(slots, minlength=num_slots * num_experts).view(num_slots, num_experts)

    def _decide(self, weights: torch.Tensor, counts: torch.Tensor) -> Decision:
        """Return the decision in a weight for every expert and how often each token reached it."""
        if bool((counts > 1).any()):
            raise self._unreadable("an expert runs on a token more than once")
        # Where an expert runs on every token, only its weight tells that it was not chosen.
        runs_on_all = (counts == 1).all(dim=0)  # (num_experts,)
        chosen = (counts > 0) & (~runs_on_all | (weights != 0))
        if bool((weights.masked_fill(chosen, 0) != 0).any()):
            raise self._unreadable("it adds to what its experts return")
        width = max(int(chosen.sum(dim=1).max()), 1)
        ranked = weights.float().masked_fill(~chosen, -torch.inf)
        ids = ranked.argsort(dim=1, descending=True, stable=True)[:, :width]
        none = ~chosen.gather(1, ids)
        return Decision(
            ids.masked_fill(none, -1),
            weights.gather(1, ids).masked_fill(none, 0),
            self._find_scores(len(weights)),
        )

    def _find_scores(self, num_slots: int) -> torch.Tensor | None:
        """Note which part is the router, and return its scores if they are wanted."""
        for path, calls in self._returned.items():
            scores = find_scores(calls[0].output, num_slots, num_experts=self._layer.num_experts)
            if scores is None or scores.shape[1] > self._layer.num_experts:
                continue
            self.router_path = f"{self._layer.block_path}.{path}"
            return scores if self._keep_scores else None
        return None

    def _unreadable(self, because: str) -> UntraceableError:
        return UntraceableError(
            f"Can't tell what {self._layer.block_path} routes: {because}.",
            hint="moetool records blocks that send each token's hidden state to its experts and "
            "add up their outputs by weight.",
        )


def _find_parts(parent: nn.Module, container: nn.Module, *, prefix: str = "") -> Iterator[_Part]:
    """Yield what a block may call next to its experts; lists are not called, their modules are."""
    for name, child in parent.named_children():
        if child is container:
            continue
        if type(child).forward in (nn.ModuleList.forward, nn.ModuleDict.forward):
            yield from _find_parts(child, container, prefix=f"{prefix}{name}.")
        else:
            yield _Part(f"{prefix}{name}", parent, name, child)
