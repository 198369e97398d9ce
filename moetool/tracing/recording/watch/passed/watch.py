"""Decisions of blocks that run their experts in kernels which hide their operations."""

from __future__ import annotations

from typing import Any

from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import join_path
from moetool.trace.routing import Routing, join_routing
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.tracing.recording.hooks import Hooks
from moetool.tracing.recording.watch.decision import Decision, Report
from moetool.tracing.recording.watch.operations.run import BlockCall
from moetool.tracing.recording.watch.operations.watch import OperationsWatch
from moetool.tracing.recording.watch.output_factor import OutputFactorMeter
from moetool.tracing.recording.watch.passed.experts_call import NotProvenError, find_rows
from moetool.tracing.recording.watch.passed.read import PassedReader


class HiddenOperationsWatch(OperationsWatch):
    """Reads operations and, where a block's first call does not show them, what its experts receive."""

    def __init__(self, layer: MoeLayer, *, keep_scores: bool) -> None:
        super().__init__(layer, keep_scores=keep_scores)
        # Once it has read a call that operations don't show.
        self._reader: PassedReader | None = None
        self._meter: OutputFactorMeter | None = None

    @property
    def output_factor(self) -> float | None:
        """Factor by which the block multiplies the experts' sum, where weights don't include it."""
        if self._reader is None or self._meter is None:
            return super().output_factor
        return self._meter.factor

    def install(self, model: nn.Module, report: Report, hooks: Hooks) -> None:
        """Place the hooks."""
        super().install(model, report, hooks)
        self._meter = OutputFactorMeter(model, self._layer)
        hooks.on_removal(self._meter.remove)

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
        if self._reader is not None:
            decision = self._read_passed(self._reader, call, args, kwargs, output)
            if decision is None:
                raise NotProvenError("its experts receive no ids and weights this time")
            return decision
        try:
            return super()._decide(block, experts, call, args, kwargs, output)
        except Exception as refusal:
            if self._is_sum_checked or is_out_of_memory(refusal):
                raise
            reader = PassedReader(self._layer, block)
            try:
                passed = self._read_passed(reader, call, args, kwargs, output)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                found, other = self._explain(refusal), self._explain(error)
                because = error if isinstance(error, NotProvenError) else other.message
                seen = f"seen: its experts receive ids and weights, but {because}"
                found.facts = (*found.facts, seen)
                raise found from error
            if passed is None:
                raise
            self._reader = reader
            return passed

    def _read_passed(
        self,
        reader: PassedReader,
        call: BlockCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Decision | None:
        """Return the decision that the block passes to its experts; None if it passes none."""
        passed = reader.read(call, args, kwargs)
        if passed is None:
            return None
        rows = find_rows(passed.output, num_tokens=call.num_tokens)
        assert rows is not None
        self._check_output(rows.reshape(call.num_tokens, -1), output)
        ids = passed.decision.experts
        is_dense = ids.shape[1] == self._layer.num_experts and bool((ids >= 0).all())
        seen = Routing.DENSE if is_dense else Routing.TOKEN_CHOICE
        self.routing = join_routing(self.routing, seen.value)
        scores = self._find_scores(passed.outputs, num_tokens=call.num_tokens)
        if passed.router is not None:
            self.router_path = join_path(self._layer.block_path, passed.router)
        return passed.decision._replace(scores=scores)
