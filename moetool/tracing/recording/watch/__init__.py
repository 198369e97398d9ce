"""Watches, which report the decisions of a routed layer while the model runs: one file per rule."""

from __future__ import annotations

from collections.abc import Callable

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.tracing.recording.watch.decision import Decision, Report, Watch
from moetool.tracing.recording.watch.passed.watch import HiddenOperationsWatch
from moetool.tracing.recording.watch.received import ReceivedWatch
from moetool.tracing.recording.watch.retrieval import RetrievalWatch
from moetool.tracing.recording.watch.separate.watch import SeparateExpertsWatch
from moetool.tracing.recording.watch.sorted_rows import SortedRowsWatch
from moetool.tracing.recording.watch.sparse_scores import SparseScoresWatch

__all__ = ["Decision", "Report", "Watch", "watch_layer"]

_WATCH_OF_RULE: dict[RoutingRule, Callable[..., Watch]] = {
    RoutingRule.RECEIVED: ReceivedWatch,
    RoutingRule.SPARSE_SCORES: SparseScoresWatch,
    RoutingRule.SORTED_ROWS: SortedRowsWatch,
    RoutingRule.SEPARATE_EXPERTS: SeparateExpertsWatch,
    RoutingRule.OPERATIONS: HiddenOperationsWatch,
    RoutingRule.ROUTER_CHOICE: SparseScoresWatch,
    RoutingRule.RETRIEVAL: RetrievalWatch,
}


def watch_layer(layer: MoeLayer, *, keep_scores: bool) -> Watch:
    """Return the watch for a layer's rule; it has no hooks yet."""
    return _WATCH_OF_RULE[layer.rule](layer, keep_scores=keep_scores)
