"""Decisions read from the operations in which tokens meet the weights of experts.

After each call the block runs again, with the same random numbers, while its operations are
observed. Where a product takes in the weights of an expert, that expert's rows are known. Gradients
then show which of the tokens went into these rows, and, from the block's output back to the last
product of each expert, which token each row was added to and with which weight.

All must agree: a token's output may come only from experts that received it, the sum must be linear
in what the experts return, and the run must give the output of the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.proposed.expert_updates import list_updates
from moetool.errors import UntraceableError
from moetool.trace.routing import Routing, join_routing
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report
from moetool.tracing.recording.watch.operations.assemble import (
    Final,
    add_up,
    choose,
    find_received,
    find_weights,
    is_mixture,
    read_finals,
)
from moetool.tracing.recording.watch.operations.labels import label_parameters
from moetool.tracing.recording.watch.operations.matching import match_received
from moetool.tracing.recording.watch.operations.observer import NotObservedError
from moetool.tracing.recording.watch.operations.run import (
    BlockCall,
    ObservedRun,
    run_observed,
)
from moetool.tracing.recording.watch.routers import find_scores
from moetool.tracing.recording.watch.separate.random_states import list_devices, read_states
from moetool.tracing.recording.watch.weighted_rows import WEIGHTED_TWICE

# Roundings by which the output of a second run may differ from the call's.
_ROUNDINGS = 64
_MIXES_OUTPUTS = "it does more with its experts' outputs than weight them"


class OperationsWatch:
    """Runs a block again after each call, observes its operations, and reads the decision.

    Attributes:
        routing: `token_choice`, `expert_choice` or, where every expert runs on every token with a
            weight that is not zero, `dense`; None until a call was seen.
        weighs_input: Whether the weights multiply what experts receive.
    """

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        self.router_path: str | None = None
        self.routing: str | None = None
        self.weighs_input = False
        self._layer = layer
        self._name = layer.block_path
        self._keep_scores = keep_scores
        self._call: BlockCall | None = None
        self._is_sum_checked = False

    @property
    def output_factor(self) -> float | None:
        """Factor by which the block multiplies the experts' sum: weights include it."""
        return 1.0

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        block = model.get_submodule(self._layer.block_path)
        self._name = self._layer.block_path or type(block).__name__
        experts = model.get_submodule(self._layer.experts_path)
        hooks.before(block, self._begin, with_kwargs=True)
        hooks.after(block, self._end(experts, report), with_kwargs=True)
        hooks.on_removal(self._forget)

    def _forget(self) -> None:
        self._call = None

    def _begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        given = next(tensors, None)
        if given is None or not given.is_floating_point() or given.dim() < 2:
            raise self._unreadable("it is not called with hidden states first")
        self._call = BlockCall(given, given.detach().clone(), read_states(list_devices(block)))

    def _end(self, experts: nn.Module, report: Report) -> Any:
        def hook(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            call = self._call
            assert call is not None
            self._forget()
            try:
                decision = self._decide(block, experts, call, args, kwargs, output)
            except UntraceableError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise self._explain(error) from error
            report(self._layer, decision)

        return hook

    def _decide(
        self,
        block: nn.Module,
        experts: nn.Module,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Decision:
        """Return the decision of a call of the block."""
        is_first = not self._is_sum_checked
        observe = functools.partial(
            run_observed,
            block,
            call,
            args,
            kwargs,
            labels=list(label_parameters(experts, num_experts=self._layer.num_experts)),
            num_experts=self._layer.num_experts,
            shares_layers=bool(list_updates(experts)),
        )
        run = observe(keeps_outputs=is_first)
        self._check_output(run.output, output)
        finals = read_finals(run)
        decision = self._read(run, finals)
        if is_first:
            numbers = [product.number for product in run.finals]
            self._check_sum(run, finals or [], observe(scaled=numbers))
            self._check_parts(run, observe)
        return decision

    def _check_output(self, rows: torch.Tensor, output: Any) -> None:
        """Check that a second run returned what the call returned.

        Args:
            rows: Of the second run. # (num_tokens, hidden_size)
            output: Of the call.
        """
        values: Sequence[Any] = output if isinstance(output, tuple | list) else (output,)
        now = rows.detach()
        tensors = (value for value in values if isinstance(value, torch.Tensor))
        before = (
            value.detach().reshape(now.shape) for value in tensors if value.numel() == now.numel()
        )
        if any(_are_same(value, now) for value in before):
            return
        raise self._unreadable("a second run of it gives another output")

    def _read(self, run: ObservedRun, finals: Sequence[Final] | None) -> Decision:
        num_experts = self._layer.num_experts
        # Rows that were multiplied are known by their values alone.
        is_weighted = any(product.weighted is not None for product in run.firsts)
        received = None if is_weighted else find_received(run, num_experts=num_experts)
        if finals is None:
            if received is None and is_mixture(run):
                raise self._unreadable(
                    "it is a soft mixture, whose experts receive weighted means of many tokens and "
                    "whose tokens get weighted means of what all of them return, so that no token "
                    "is routed"
                )
            raise self._unreadable(_MIXES_OUTPUTS)
        weights = find_weights(finals, num_tokens=len(run.output), num_experts=num_experts)
        if received is None or not _covers(received, weights):
            # Rows of GShard's dispatch, for example, if gradients pass its mask as well.
            matched = match_received(run, weights)
            if matched is None and (received is None or not bool(received.any())):
                raise self._unreadable("its experts receive other rows than its hidden states")
            if matched is None or not _covers(matched.tokens, weights):
                raise self._unreadable(
                    "its tokens get outputs of experts that did not receive them"
                )
            received = matched.tokens
            weighs_input = bool((matched.weights[weights != 0] != 1).any())
            if weighs_input:
                if bool(((weights != 0) & (weights != 1)).any()):
                    raise self._unreadable(WEIGHTED_TWICE)
                weights = weights * matched.weights
                self.weighs_input = True
        ids, chosen = choose(weights, received)
        is_choice_of_experts = run.observer.chooses_tokens and num_experts not in run.lengths
        is_dense = ids.shape[1] == num_experts and bool((ids >= 0).all())
        routing = Routing.DENSE if is_dense else Routing.TOKEN_CHOICE
        seen = Routing.EXPERT_CHOICE if is_choice_of_experts else routing
        self.routing = join_routing(self.routing, seen.value)
        scores = self._find_scores(run.outputs, num_tokens=len(run.output))
        return Decision(ids, chosen, scores)

    def _check_sum(self, run: ObservedRun, finals: Sequence[Final], scaled: ObservedRun) -> None:
        """Check, once, that the weights explain all that experts add, and don't depend on it.

        Args:
            run: The second run.
            finals: What gradients showed of it.
            scaled: Another run, in which experts returned -2 times as much.
        """
        again = read_finals(scaled)
        if again is None or not all(
            torch.equal(one.tokens, other.tokens) and torch.equal(one.weights, other.weights)
            for one, other in zip(finals, again, strict=True)
        ):
            raise self._unreadable(_MIXES_OUTPUTS)
        before, after = run.output.detach().double(), scaled.output.detach().double()
        rest = (before - after) / 3 - add_up(run, finals)
        rounding = _ROUNDINGS * torch.finfo(run.output.dtype).eps
        if bool((rest.abs() > rounding * (before.abs() + after.abs()).max()).any()):
            raise self._unreadable(_MIXES_OUTPUTS)
        self._is_sum_checked = True

    def _check_parts(self, run: ObservedRun, observe: Callable[..., ObservedRun]) -> None:
        """Check that what an expert's inner products make reaches its last ones alone.

        Layers that experts share would make something else of it.
        """
        finals = {product.number: product for product in run.finals}
        others = observe(
            scaled=[product.number for product in run.observer.products],
            pinned={number: run.observer.outputs[number] for number in finals},
        )
        if not _are_same(run.output.detach(), others.output.detach()):
            raise self._unreadable(_MIXES_OUTPUTS)

    def _find_scores(self, outputs: Mapping[str, Any], *, num_tokens: int) -> torch.Tensor | None:
        """Note which module is the router, and return its scores if they are wanted.

        Args:
            outputs: What the block's modules returned, by path in the block.
            num_tokens: Number of tokens.
        """
        num_experts = self._layer.num_experts
        for path, output in outputs.items():
            scores = find_scores(output, num_tokens, num_experts=num_experts)
            if scores is None or scores.shape[1] != num_experts:
                continue
            block = self._layer.block_path
            self.router_path = f"{block}.{path}" if block else path
            return scores if self._keep_scores else None
        return None

    def _explain(self, error: Exception) -> UntraceableError:
        """Return the refusal that follows from what ended a second run."""
        if isinstance(error, UntraceableError):
            return error
        is_sentence = isinstance(error, NotObservedError | ValueError)
        return self._unreadable(
            str(error) if is_sentence else f"a second run of it ends in {error!r}"
        )

    def _unreadable(self, because: str) -> UntraceableError:
        return UntraceableError(
            f"Can't tell what {self._name} routes: {because}.",
            hint="moetool records blocks that send each token's hidden state to its experts and "
            "add up their outputs by weight.",
        )


def _are_same(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Return whether two outputs of the block are the same up to rounding."""
    limit = _ROUNDINGS * torch.finfo(now.dtype).eps * before.abs().max().double()
    return bool((before.double() - now.double()).abs().max() <= limit)


def _covers(received: torch.Tensor, weights: torch.Tensor) -> bool:
    """Return whether only experts that received a token have a weight for it."""
    return not bool((weights.masked_fill(received, 0) != 0).any())
