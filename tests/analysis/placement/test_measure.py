"""Placements of whole traces: fitted on one half of the prompts, scored on the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.placement.measure import PlacementOptions, measure_placement
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.result import METHODS, Direction, Placement
from moetool.analysis.placement.summary import SentBytes, estimate_change
from moetool.analysis.statistics.halves import split_prompts
from moetool.errors import InputError, UsageError
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.reading.reader import TraceSource, open_trace
from tests.analysis.placement import reference
from tests.analysis.random_traces import (
    Router,
    list_decisions,
    make_random_trace,
    open_rows,
)

ROUTER = Router(num_experts=8, top_k=3, num_layers=2, popularity=(8, 7, 6, 5, 4, 3, 2, 1))
LENGTHS = (30, 11, 25, 18, 40, 9, 22, 31, 17, 28)
OPTIONS = PlacementOptions(tokens_per_batch=10, sent=SentBytes(hidden_size=64, bytes_per_value=2))
CLUSTERS = (Cluster(4), Cluster(4, 2, 4, 2))


def make_trace(*, domains: tuple[str, ...] = ("code", "prose"), seed: int = 0) -> pa.Table:
    return make_random_trace(LENGTHS, router=ROUTER, domains=domains, seed=seed)


def measure(
    table: pa.Table, cluster: Cluster = CLUSTERS[0], options: PlacementOptions = OPTIONS
) -> Placement:
    return measure_placement(open_rows(table, router=ROUTER), cluster, options)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_scores_are_those_of_the_other_half(cluster: Cluster) -> None:
    table = make_trace()
    _check_scores(open_rows(table, router=ROUTER), table, cluster)


def test_scores_of_a_real_trace(demo_trace: Path) -> None:
    source = open_trace(demo_trace)
    table = pa.concat_tables(source.iter_tables(list(source.columns)))
    layer = pc.equal(table.column("layer"), 5)
    _check_scores(source, table.filter(layer), CLUSTERS[1], layers=[5], tokens_per_batch=512)


def _check_scores(
    source: TraceSource,
    table: pa.Table,
    cluster: Cluster,
    *,
    layers: list[int] | None = None,
    tokens_per_batch: int = 10,
) -> None:
    """Check every score of contiguous and EPLB's placement, and bytes, against plain Python."""
    options = PlacementOptions(
        layers=layers, tokens_per_batch=tokens_per_batch, sent=OPTIONS.sent, seed=3
    )
    result = measure_placement(source, cluster, options)
    decisions = list_decisions(table)
    domains = {decision.prompt_id: decision.domain for decision in decisions}
    flags = split_prompts(list(domains), groups=list(domains.values()), seed=3)
    is_held_out = dict(zip(domains, flags.tolist(), strict=True))
    fitted: dict[int, list[list[int]]] = defaultdict(list)
    scored: dict[int, list[list[int]]] = defaultdict(list)
    for decision in decisions:
        half = scored if is_held_out[decision.prompt_id] else fitted
        half[decision.layer].append(list(decision.experts))
    for layer in result.layers:
        loads = Counter(expert for choice in fitted[layer.layer] for expert in choice)
        eplb = reference.place_by_load(
            [loads[expert] for expert in range(8)],
            num_slots=cluster.count_slots(8),
            num_groups=cluster.num_groups,
            num_nodes=cluster.num_nodes,
            num_gpus=cluster.num_gpus,
        )
        contiguous = [slot % 8 for slot in range(cluster.count_slots(8))]
        for method, slots in (("contiguous", contiguous), ("eplb", eplb)):
            found = layer.scores[method]
            held_out = scored[layer.layer]
            fan_out, node_fan_out = (
                sum(reference.count_reached(choice, slots, num_parts=parts) for choice in held_out)
                / len(held_out)
                for parts in (cluster.num_gpus, cluster.num_nodes)
            )
            imbalance = [
                reference.measure_imbalance(batch, slots, num_parts=cluster.num_gpus)
                for batch in reference.split_batches(held_out, tokens_per_batch)
            ]
            assert found.fan_out == pytest.approx(fan_out)
            assert found.node_fan_out == pytest.approx(node_fan_out)
            assert found.batch_imbalance == pytest.approx(sum(imbalance) / len(imbalance))
            # To three of four GPUs, there and back, 64 values of 2 bytes.
            assert found.all_to_all_bytes_per_token == pytest.approx(
                2 * fan_out * (1 - 1 / cluster.num_gpus) * 64 * 2
            )


def test_methods_are_means_over_layers_and_bytes_are_sums() -> None:
    result = measure(make_trace())
    for method in METHODS:
        found = result.methods[method]
        assert found is not None
        scores = [layer.scores[method] for layer in result.layers]
        for name in ("batch_imbalance", "global_imbalance", "fan_out", "node_fan_out"):
            mean = sum(getattr(score, name) for score in scores) / len(scores)
            assert getattr(found, name) == pytest.approx(mean)
        assert found.all_to_all_bytes_per_token == pytest.approx(
            sum(score.all_to_all_bytes_per_token or 0 for score in scores)
        )
        assert found.fan_out_change is not None
        contiguous = result.methods["contiguous"]
        assert contiguous is not None
        assert contiguous.fan_out is not None
        assert found.fan_out is not None
        assert found.fan_out_change.change == pytest.approx(found.fan_out / contiguous.fan_out - 1)


def test_final_slots_are_fitted_on_all_prompts() -> None:
    table = make_trace()
    result = measure(table)
    for layer in result.layers:
        load = Counter(
            expert
            for decision in list_decisions(table)
            if decision.layer == layer.layer
            for expert in decision.experts
        )
        assert list(layer.load) == [load[expert] for expert in range(8)]
        eplb = result.methods["eplb"]
        assert eplb is not None
        assert list(eplb.physical_to_logical[str(layer.layer)]) == reference.place_by_load(
            layer.load, num_slots=8, num_groups=1, num_nodes=1, num_gpus=4
        )


@settings(max_examples=8)
@given(order=st.permutations(range(len(LENGTHS))))
def test_parts_in_any_order_hold_out_the_same_prompts(order: list[int]) -> None:
    """Batches follow the order of a trace; loads, pairs and fan-out don't."""
    table = make_trace()
    prompts = table.column("prompt_id").to_pylist()
    rows = [[row for row, prompt in enumerate(prompts) if prompt == f"p{index}"] for index in order]
    shuffled = table.take(pa.array([row for part in rows for row in part]))
    first, second = (measure(each) for each in (table, shuffled))
    for method in ("contiguous", "eplb"):
        mine, others = first.methods[method], second.methods[method]
        assert mine is not None
        assert others is not None
        assert mine.physical_to_logical == others.physical_to_logical
        assert mine.fan_out == pytest.approx(others.fan_out)
        assert mine.global_imbalance == pytest.approx(others.global_imbalance)


def test_another_seed_holds_out_other_prompts_of_each_domain() -> None:
    table = make_trace()
    domains = {one.prompt_id: one.domain for one in list_decisions(table)}
    found = [measure(table, options=replace(OPTIONS, seed=seed)).split for seed in range(4)]
    assert len({split.held_out_prompts for split in found}) > 1
    for split in found:
        number = Counter(domains[prompt] for prompt in split.held_out_prompts)
        assert sorted(number.values()) == [2, 3]


def test_change_is_a_ratio_of_sums_with_an_interval_over_prompts() -> None:
    mine, others = np.array([1.0, 3.0, 2.0, 0.0]), np.array([2.0, 4.0, 3.0, 0.0])
    found = estimate_change(mine, others)
    assert found is not None
    ratio = 6 / 9
    squares = [(1 - 2 * ratio) ** 2, (3 - 4 * ratio) ** 2, (2 - 3 * ratio) ** 2]
    error = (3 / 2 * sum(squares)) ** 0.5 / 9
    assert found.change == pytest.approx(ratio - 1)
    assert (found.low, found.high) == pytest.approx(
        (ratio - 1 - 4.302653 * error, ratio - 1 + 4.302653 * error)  # Student's t, 2 of freedom
    )
    assert found.verdict is Direction.DOWN
    assert estimate_change(others * 1.1 + [0, 0, 0.1, 0], others).verdict is Direction.UP  # type: ignore[union-attr]
    assert estimate_change(others, others).verdict is Direction.NONE  # type: ignore[union-attr]
    alone = estimate_change(mine[:1], others[:1])
    assert alone is not None
    assert (alone.change, alone.low, alone.verdict) == (-0.5, None, Direction.UNKNOWN)


def test_interval_of_a_change_covers_the_truth() -> None:
    """The interval misses in 5 % of 400 samples of 30 prompts, within four standard errors."""
    rng = np.random.default_rng(0)
    num_covered = 0
    for _ in range(400):
        others = rng.gamma(4, size=30)
        mine = others * rng.normal(0.9, 0.1, size=30)
        found = estimate_change(mine, others)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        num_covered += found.low <= -0.1 <= found.high
    assert abs(num_covered / 400 - 0.95) <= 4 * (0.95 * 0.05 / 400) ** 0.5


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        (("code",), "All prompts are of one domain, 'code'"),
        ((NO_DOMAIN,), "No prompt has a value of domain"),
        (("code",) * 9 + ("prose",), "88% of the tokens are of one domain, 'code'"),
    ],
)
def test_one_domain_is_warned_of(domains: tuple[str, ...], words: str) -> None:
    notes = measure(make_trace(domains=domains)).notes
    (note,) = [each for each in notes if "load balance does not carry over" in each]
    assert note.startswith(words)


def test_mixed_domains_are_not_warned_of() -> None:
    assert not any("carry over" in note for note in measure(make_trace()).notes)


def test_a_single_prompt_is_not_warned_of_its_domain() -> None:
    (note,) = measure(make_random_trace((40,), router=ROUTER)).notes
    assert note.startswith("The trace has a single prompt, so none is held out")


def test_unknown_numbers_are_none_with_a_reason() -> None:
    options = PlacementOptions(
        tokens_per_batch=10_000, sent=SentBytes(None, None, "bytes are unknown")
    )
    result = measure(make_trace(), options=options)
    found = result.methods["eplb"]
    assert found is not None
    assert (found.batch_imbalance, found.baseline.batch_imbalance) == (None, None)
    assert found.all_to_all_bytes_per_token is None
    assert found.fan_out is not None
    assert any(note.startswith("Batch imbalance is unknown") for note in result.notes)
    assert "bytes are unknown" in result.notes


def test_a_single_prompt_is_fitted_and_scored_on() -> None:
    table = make_random_trace((60,), router=ROUTER)
    result = measure(table)
    assert (result.split.unit, result.split.held_out_prompts) == (None, ())
    assert any("none is held out" in note for note in result.notes)
    for layer in result.layers:
        choices = [list(one.experts) for one in list_decisions(table) if one.layer == layer.layer]
        load = Counter(expert for choice in choices for expert in choice)
        assert list(layer.load) == [load[expert] for expert in range(8)]
        slots = reference.place_by_load(
            layer.load, num_slots=8, num_groups=1, num_nodes=1, num_gpus=4
        )
        eplb = result.methods["eplb"]
        assert eplb is not None
        assert list(eplb.physical_to_logical[layer.name]) == slots
        assert eplb.scored_physical_to_logical is None
        assert eplb.fan_out_change is not None
        assert eplb.fan_out_change.verdict is Direction.UNKNOWN
        reached = [reference.count_reached(choice, slots, num_parts=4) for choice in choices]
        assert layer.scores["eplb"].fan_out == pytest.approx(sum(reached) / 60)


def test_pairs_that_would_fill_the_memory_are_refused() -> None:
    router = Router(num_experts=30_000, top_k=1, num_layers=1, popularity=(1.0,) * 2)
    table = make_random_trace((2, 2), router=Router(num_experts=2, top_k=1, num_layers=1))
    with pytest.raises(InputError, match=r"takes more than 3\.0 GiB of memory"):
        measure_placement(open_rows(table, router=router), CLUSTERS[0])


def test_uneven_layers_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="Layer 0 has 8 experts"):
        measure(make_trace(), Cluster(3))


def test_vllm_gets_the_fewest_replicas_that_are_close_to_the_best() -> None:
    options = PlacementOptions(tokens_per_batch=10, advises_vllm=True)
    advice = measure(make_trace(), options=options).vllm
    assert advice is not None
    tried = advice.imbalance_by_redundant
    assert list(tried) == ["0", "4", "8", "16"]
    close = [int(number) for number in tried if tried[number] <= 1.02 * min(tried.values())]
    assert advice.num_redundant_experts == min(close)
    strategies = advice.imbalance_by_strategy
    assert set(strategies) == {"linear", "round_robin"}
    eplb, contiguous = (measure(make_trace()).methods[name] for name in ("eplb", "contiguous"))
    assert eplb is not None
    assert contiguous is not None
    assert tried["0"] == pytest.approx(eplb.batch_imbalance)
    assert strategies["linear"] == pytest.approx(contiguous.batch_imbalance)


@pytest.mark.parametrize(("num_groups", "expected"), [(1, "linear"), (4, "round_robin")])
def test_vllm_takes_round_robin_for_groups_alone(num_groups: int, expected: str) -> None:
    """Experts that lie next to each other are equally popular here, so that taking turns is better."""
    router = Router(num_experts=8, top_k=2, num_layers=1, popularity=(9, 9, 1, 1, 1, 1, 1, 1))
    source = open_rows(make_random_trace(LENGTHS, router=router), router=router)
    options = PlacementOptions(tokens_per_batch=10, advises_vllm=True)
    advice = measure_placement(source, Cluster(4, num_groups=num_groups), options).vllm
    assert advice is not None
    strategies = advice.imbalance_by_strategy
    assert strategies["round_robin"] < strategies["linear"]
    assert advice.expert_placement_strategy == expected


def test_rows_and_slots_as_frames() -> None:
    result = measure(make_trace(), CLUSTERS[1])
    scores = result.to_frame()
    assert len(scores) == 2 * 3
    assert set(scores["method"]) == set(METHODS)
    slots = result.to_frame("slots")
    assert len(slots) == 3 * 2 * 12
    assert slots.groupby(["method", "layer", "gpu"]).size().unique().tolist() == [3]
    with pytest.raises(UsageError):
        result.to_frame("other")  # type: ignore[arg-type]
