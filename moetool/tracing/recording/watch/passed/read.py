"""Decisions that a block passes to the module that holds its experts, read and proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import is_called
from moetool.tracing.recording.watch.decision import Decision
from moetool.tracing.recording.watch.operations.run import BlockCall, replaying
from moetool.tracing.recording.watch.passed.experts_call import (
    ExpertsCall,
    NotProvenError,
    SeenCall,
    find_rows,
    list_candidates,
)
from moetool.tracing.recording.watch.passed.proof import Proof, list_subsets, replace_rows
from moetool.tracing.recording.watch.passed.slices import find_slices
from moetool.tracing.recording.watch.separate.random_states import list_devices, read_states


@dataclass(frozen=True)
class PassedDecision:
    """A decision that was passed to experts, and proven.

    Attributes:
        decision: Without scores.
        output: What the block returned when it ran again.
        outputs: What its other modules returned, by path in the block.
        router: Path in the block of the module that returned the ids or weights; None if none did.
    """

    decision: Decision
    output: Any
    outputs: Mapping[str, Any]
    router: str | None


@dataclass
class _BlockRun:
    """A run of a block, with the calls of the modules that hold its experts."""

    calls: dict[str, list[SeenCall]]
    outputs: dict[str, Any]
    output: Any = None


class PassedReader:
    """Reads the decisions of one block's calls.

    Args:
        layer: The routed layer.
        block: The module that holds its router and experts.
    """

    def __init__(self, layer: MoeLayer, block: nn.Module) -> None:
        self._block = block
        self._num_experts = layer.num_experts
        within = layer.experts_path.removeprefix(layer.block_path).removeprefix(".")
        words = within.split(".") if within else []
        paths = [".".join(words[:depth]) for depth in range(1, len(words) + 1)]
        # The outermost first.
        self._holders = {path: block.get_submodule(path) for path in paths}
        self._holders = {path: each for path, each in self._holders.items() if is_called(each)}
        self._proofs: dict[str, Proof] = {}

    def read(
        self, call: BlockCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> PassedDecision | None:
        """Run the block again and return the decision; None if no module receives one.

        Raises:
            NotProvenError: Its experts do something else than what ids and weights say.
        """
        run = self._run(call, args, kwargs)
        refusal: NotProvenError | None = None
        for path, calls in run.calls.items():
            if len(calls) != 1:
                continue
            for candidate in list_candidates(calls[0], num_experts=self._num_experts):
                try:
                    is_used = self._prove(path, candidate, call, args, kwargs)
                except NotProvenError as error:
                    refusal = refusal or error
                    continue
                ids, weights = candidate.decision
                decision = Decision(ids.masked_fill(~is_used, -1), weights.masked_fill(~is_used, 0))
                return PassedDecision(
                    decision, run.output, run.outputs, _find_source(run.outputs, candidate)
                )
        if refusal is not None:
            raise refusal
        return None

    def _prove(
        self,
        path: str,
        candidate: ExpertsCall,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> torch.Tensor:
        slices = find_slices(self._holders[path], num_experts=self._num_experts)
        proof = self._proofs.get(path) or Proof(slices, num_experts=self._num_experts)
        if candidate.num_tokens * call.hidden.shape[-1] != call.hidden.numel():
            raise NotProvenError("they receive another number of rows than the block")
        with replaying(self._block, call.random):
            is_used = proof.prove(candidate)
        is_first = path not in self._proofs
        self._check_rows(path, candidate, call, args, kwargs, is_first=is_first)
        if is_first:
            self._check_outputs(path, candidate, call, args, kwargs)
        self._proofs[path] = proof
        return is_used

    def _check_rows(
        self,
        path: str,
        candidate: ExpertsCall,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        is_first: bool,
    ) -> None:
        """Check that the rows that experts receive are made of the block's tokens, in their order."""
        rows = candidate.rows.reshape(candidate.num_tokens, -1)
        hidden = call.hidden.reshape(candidate.num_tokens, -1)
        if torch.equal(rows, hidden):
            return
        places = [value is candidate.rows for value in candidate.seen.tensors]
        for is_replaced in list_subsets(hidden, is_first=is_first):
            others = replace_rows(hidden, is_replaced).view_as(call.hidden)
            run = self._run(call, args, kwargs, hidden=others)
            found = run.calls[path][0].tensors[places.index(True)].reshape(rows.shape)
            if not torch.equal((found != rows).any(dim=1), is_replaced):
                raise NotProvenError("their rows are not made of one token each")

    def _check_outputs(
        self,
        path: str,
        candidate: ExpertsCall,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Check that the block returns to each token what its experts returned."""
        num_tokens = candidate.num_tokens
        plain = find_rows(self._run(call, args, kwargs).output, num_tokens=num_tokens)
        for is_replaced in list_subsets(call.hidden.reshape(num_tokens, -1), is_first=True):

            def change(rows: torch.Tensor, chosen: torch.Tensor = is_replaced) -> torch.Tensor:
                return replace_rows(rows.reshape(num_tokens, -1), chosen).view_as(rows)

            run = self._run(call, args, kwargs, changed={path: change})
            found = find_rows(run.output, num_tokens=num_tokens)
            if plain is None or found is None:
                raise NotProvenError("the block returns no row for each token")
            is_changed = (found != plain).reshape(num_tokens, -1).any(dim=1)
            if not torch.equal(is_changed, is_replaced):
                raise NotProvenError("the block gives a token what experts returned for others")

    def _run(
        self,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        hidden: torch.Tensor | None = None,
        changed: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> _BlockRun:
        """Run the block again.

        Args:
            hidden: Other hidden states. # (..., hidden_size)
            changed: By the path of a module, what to make of the rows that it returns.
        """
        run = _BlockRun({path: [] for path in self._holders}, {})
        states = (call.hidden if hidden is None else hidden).clone()

        def replace(value: Any) -> Any:
            return states if value is call.given else value

        num_tokens = states.numel() // states.shape[-1]
        with replaying(self._block, call.random):
            for path, module in self._holders.items():
                change = (changed or {}).get(path)
                vars(module)["forward"] = _keep_call(module, run.calls[path], num_tokens, change)
            for path, module in self._list_others():
                module.register_forward_hook(_keep_output(run.outputs, path))
            run.output = self._block.forward(
                *map(replace, args), **{name: replace(value) for name, value in kwargs.items()}
            )
        return run

    def _list_others(self) -> Iterator[tuple[str, nn.Module]]:
        for path, module in self._block.named_modules():
            is_holder = any(f"{path}.".startswith(f"{holder}.") for holder in self._holders)
            if path and not is_holder:
                yield path, module


def _keep_call(
    module: nn.Module,
    calls: list[SeenCall],
    num_tokens: int,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Any:
    """Return a forward that keeps what a module received and returned."""
    forward, devices = module.forward, list_devices(module)

    def keeping(*args: Any, **kwargs: Any) -> Any:
        given: dict[int, torch.Tensor] = {}

        def copy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            found = value.clone()
            given[id(found)] = value
            return found

        copies = tuple(map(copy, args)), {name: copy(value) for name, value in kwargs.items()}
        random = read_states(devices)
        output = forward(*args, **kwargs)
        rows = find_rows(output, num_tokens=num_tokens)
        if rows is None:
            return output
        calls.append(SeenCall(module, forward, *copies, given, rows.clone(), random, devices))
        if change is None:
            return output
        if isinstance(output, torch.Tensor):
            return change(output)
        return type(output)(change(value) if value is rows else value for value in output)

    return keeping


def _keep_output(outputs: dict[str, Any], path: str) -> Any:
    def hook(_module: nn.Module, _args: object, output: Any) -> None:
        outputs[path] = output

    return hook


def _find_source(outputs: Mapping[str, Any], call: ExpertsCall) -> str | None:
    """Return the module that returned the tensor of ids or of weights that experts received."""
    wanted = [call.seen.given[id(value)] for value in (call.ids, call.weights)]
    for path, output in outputs.items():
        values = output if isinstance(output, tuple | list) else (output,)
        if any(value is tensor for value in values for tensor in wanted):
            return path
    return None
