"""Single experts that stay on the GPU, where an engine moves the others one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.memory.answers.on_gpus import ExpertCache
from moetool.memory.offload.expert_bytes import LayerExperts, list_layer_experts

if TYPE_CHECKING:
    from moetool.analysis.caching.result import PolicyResult


def plan_expert_cache(
    skeleton: RoutedSkeleton,
    *,
    gpu_memory_bytes: int,
    total_bytes: int,
    choices: Mapping[MoeLayer, int],
    routing: str,
    trace: Path | None,
) -> ExpertCache | None:
    """Return what the experts that still fit on a GPU are worth in decoding one sequence.

    Every layer keeps the same number of experts, besides the room for those that a token needs in
    one layer. With a uniform random router, C of E experts are needed C / E of the time. A trace
    says how often a fixed set and LRU really have them.

    None if all experts fit, or not one of each layer.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        gpu_memory_bytes: The GPU's memory.
        total_bytes: Memory that the run needs on the device with everything on it.
        choices: The number of experts a token chooses in each routed layer.
        routing: `uniform`, or the name of the trace.
        trace: A recorded trace of the model; None for uniform routing.

    Raises:
        InputError: The trace can't be used.
    """
    if total_bytes <= gpu_memory_bytes:
        return None
    experts = list_layer_experts(skeleton)
    if not experts:
        return None
    sizes = {(each.layer.stack, each.layer.layer): _find_size(each) for each in experts}
    at_work = max(choices[each.layer] * _find_size(each) for each in experts)
    free_bytes = gpu_memory_bytes - total_bytes + sum(each.num_bytes for each in experts) - at_work
    num_kept = min(
        free_bytes // sum(sizes.values()), max(each.layer.num_experts for each in experts)
    )
    if num_kept < 1:
        return None
    by_chance = {each: min(num_kept, each.layer.num_experts) / _count_ids(each) for each in experts}
    requests = {
        each: choices[each.layer] * each.layer.num_experts / _count_ids(each) for each in experts
    }
    uniform_rate = sum(choices[each.layer] * rate for each, rate in by_chance.items()) / sum(
        requests.values()
    )
    uniform_bytes = sum(
        (requests[each] - choices[each.layer] * by_chance[each]) * _find_size(each)
        for each in experts
    )
    static = lru = None
    if trace is not None:
        static, lru = _simulate(trace, num_kept, sizes)
    return ExpertCache(
        routing=routing,
        experts_per_layer=num_kept,
        gpu_bytes=sum(min(num_kept, each.layer.num_experts) * _find_size(each) for each in experts),
        uniform_hit_rate=uniform_rate,
        uniform_transfer_bytes_per_token=round(uniform_bytes),
        static_hit_rate=None if static is None else static.hit_rate,
        static_transfer_bytes_per_token=_round_bytes(static),
        lru_hit_rate=None if lru is None else lru.hit_rate,
        lru_transfer_bytes_per_token=_round_bytes(lru),
    )


def _simulate(
    trace: Path, num_kept: int, sizes: Mapping[tuple[str, int], int]
) -> Sequence[PolicyResult | None]:
    """Return the worth of a fixed set and of LRU in decoding."""
    # Most estimates read no trace.
    from moetool.analysis.caching.budgets import Budget
    from moetool.analysis.caching.measure import COLUMNS, simulate_caches
    from moetool.analysis.caching.simulation.policies import Policy
    from moetool.trace.decisions import PHASES
    from moetool.trace.reading.reader import open_trace
    from moetool.trace.windows.reader import DecisionReader

    result = simulate_caches(
        DecisionReader(open_trace(trace), columns=COLUMNS),
        budgets=[Budget(str(num_kept), num_experts=num_kept)],
        expert_bytes=sizes,
        policies=(Policy.STATIC, Policy.LRU),
    )
    found = {item.policy: item for item in result.policies if item.phase == PHASES[1]}
    return [found.get(policy) for policy in (Policy.STATIC, Policy.LRU)]


def _find_size(experts: LayerExperts) -> int:
    """Return the bytes of one expert, rounded up."""
    return experts.count_read_bytes(num_experts=1)


def _count_ids(experts: LayerExperts) -> int:
    return experts.layer.num_experts + experts.layer.num_identity_experts


def _round_bytes(item: PolicyResult | None) -> int | None:
    return None if item is None or item.bytes_per_token is None else round(item.bytes_per_token)
