"""Hit rates of the policies, next to caches that are simulated step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.analysis.caching.budgets import parse_budgets
from moetool.analysis.caching.measure import COLUMNS, simulate_caches
from moetool.analysis.caching.result import Caching, PolicyResult
from moetool.analysis.caching.simulation import random_router, replacement
from moetool.errors import InputError
from moetool.trace.windows import reader as window_reader
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.caching.plain_caches import (
    POLICIES,
    count_hits,
    find_most_hits,
    find_static_sets,
    list_hits,
    list_steps,
)
from tests.analysis.comparison.two_traces import find_ratio
from tests.analysis.random_traces import Router, make_random_trace, open_rows
from tests.analysis.short_decisions import shorten_decisions

LENGTHS = (9, 4, 13, 6, 8, 1, 11)
SKEWED = Router(num_experts=12, top_k=3, popularity=(9, 7, 5, 3, 3, 2, 1, 1, 1, 1, 1, 1))


def simulate(table: pa.Table, budget: str, *, router: Router, **options: Any) -> Caching:
    reader = DecisionReader(open_rows(table, router=router), columns=COLUMNS)
    return simulate_caches(reader, budgets=parse_budgets(budget), **options)


def find(result: Caching, policy: str, budget: str, phase: str) -> PolicyResult:
    (item,) = (
        item
        for item in result.policies
        if (item.policy, item.budget, item.phase) == (policy, budget, phase)
    )
    return item


@pytest.mark.parametrize("tokens_per_batch", [None, 1, 3])
@pytest.mark.parametrize("router", [SKEWED, Router(top_k=1), Router(num_experts=70, top_k=8)])
@pytest.mark.parametrize("seed", range(2))
def test_hits_are_those_of_caches_step_by_step(
    router: Router, tokens_per_batch: int | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_reader, "_ROWS_PER_WINDOW", 60)
    monkeypatch.setattr("moetool.trace.reading.reader._ROWS_PER_TABLE", 50)
    monkeypatch.setattr(replacement, "_CELLS_AT_ONCE", 200)
    # The baseline is not looked at here.
    monkeypatch.setattr(random_router, "_MOST_TRACES", 1)
    table = make_random_trace(LENGTHS, router=router, num_prompt_tokens=5, seed=seed)
    table = shorten_decisions(table, share=0.4 * seed)
    capacities = (1, 2, router.num_experts // 2)
    budget = ",".join(map(str, capacities))
    result = simulate(table, budget, router=router, tokens_per_batch=tokens_per_batch)
    assert {item.phase for item in result.policies} == {"prefill", "decode"}
    total: dict[tuple[str, int, str], int] = {}
    requests: dict[str, int] = {"prefill": 0, "decode": 0}
    for layer in result.layers:
        steps = list_steps(table, layer=layer.layer, tokens_per_batch=tokens_per_batch)
        for step in steps:
            requests[step.phase] += len(step.needed)
        for capacity in capacities:
            static = find_static_sets(table, layer=layer.layer, capacity=capacity)
            for policy in POLICIES:
                hits = count_hits(steps, policy, capacity=capacity, static=static)
                for item in layer.policies:
                    if (item.policy, item.num_kept) == (policy, capacity):
                        own = sum(len(s.needed) for s in steps if s.phase == item.phase)
                        assert item.hit_rate == pytest.approx(hits[item.phase] / own)
                        key = (policy, capacity, item.phase)
                        total[key] = total.get(key, 0) + hits[item.phase]
    assert len(total) == len(POLICIES) * 3 * 2
    for (policy, capacity, phase), number in total.items():
        over_all = find(result, policy, str(capacity), phase)
        assert over_all.hit_rate == pytest.approx(number / requests[phase])


def test_a_trace_of_prompts_is_decoded_in_a_separate_simulation() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED)
    result = simulate(table, "4", router=SKEWED)
    hits = sum(
        count_hits(list_steps(table, layer=layer, decodes_all=True), "lru", capacity=4, static={})[
            "decode"
        ]
        for layer in range(SKEWED.num_layers)
    )
    num_requests = sum(LENGTHS) * SKEWED.top_k * SKEWED.num_layers
    assert find(result, "lru", "4", "decode").hit_rate == pytest.approx(hits / num_requests)
    assert any("decode takes the tokens of the prompts" in note for note in result.notes)
    without = simulate(table.drop_columns(["phase"]), "4", router=SKEWED)
    assert without.policies == result.policies
    assert any("has no phases" in note for note in without.notes)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tokens_per_batch", [1, 2])
def test_no_cache_has_more_hits_than_the_optimum(seed: int, tokens_per_batch: int) -> None:
    router = Router(num_experts=5, top_k=2, num_layers=1)
    table = make_random_trace((6, 5), router=router, seed=seed)
    for capacity in (1, 2, 3):
        result = simulate(table, str(capacity), router=router, tokens_per_batch=tokens_per_batch)
        steps = list_steps(table, layer=0, tokens_per_batch=tokens_per_batch)
        most = find_most_hits(steps, capacity=capacity)
        item = find(result, "belady", str(capacity), "prefill")
        assert item.hit_rate == pytest.approx(most / sum(len(step.needed) for step in steps))


@settings(max_examples=15)
@given(seed=st.integers(0, 1_000))
def test_other_names_for_the_experts_change_no_hit(seed: int) -> None:
    table = make_random_trace((5, 7, 6), router=SKEWED, seed=seed, num_prompt_tokens=3)
    name = np.random.default_rng(seed).permutation(SKEWED.num_experts)
    index = table.column_names.index("expert")
    renamed = name[table.column("expert").to_numpy()].astype(np.int16)
    other = table.set_column(index, "expert", pa.array(renamed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_router, "_MOST_TRACES", 1)
        results = [simulate(each, "2,6", router=SKEWED) for each in (table, other)]
    for one, two in zip(results[0].policies, results[1].policies, strict=True):
        # Experts of equal load are put into static sets in the order of their ids.
        if one.policy != "static":
            assert one == two


def test_a_cache_of_all_experts_misses_each_once() -> None:
    table = make_random_trace(LENGTHS, router=SKEWED, num_prompt_tokens=0)
    result = simulate(table, "100%", router=SKEWED)
    num_requests = sum(LENGTHS) * SKEWED.top_k * SKEWED.num_layers
    used = len({(row["layer"], row["expert"]) for row in table.to_pylist()})
    for policy in ("lru", "lfu", "belady"):
        item = find(result, policy, "100%", "decode")
        assert item.hit_rate == pytest.approx(1 - used / num_requests)
    assert find(result, "static", "100%", "decode").hit_rate == 1


@pytest.mark.parametrize("share_short", [0.0, 0.6])
@pytest.mark.parametrize("capacity", [3, 8])
def test_a_random_router_lands_on_the_baseline(capacity: int, share_short: float) -> None:
    router = Router(num_experts=16, top_k=4, num_layers=2)
    lengths = (40,) * 50
    table = make_random_trace(lengths, router=router, num_prompt_tokens=0)
    table = shorten_decisions(table, share=share_short)
    result = simulate(table, str(capacity), router=router)
    for policy in POLICIES:
        item = find(result, policy, str(capacity), "decode")
        num_requests = sum(lengths) * (1 + 3 * (1 - share_short)) * router.num_layers
        assert item.hit_rate is not None
        assert item.baseline.hit_rate is not None
        # The baseline is simulated, too, with half as many requests.
        error = np.sqrt(0.25 * 3 / num_requests)
        assert abs(item.hit_rate - item.baseline.hit_rate) < 5 * error, policy
        if policy != "belady":
            assert item.baseline.hit_rate == pytest.approx(capacity / 16, abs=5 * error)


@pytest.mark.parametrize("share_short", [0.0, 0.6])
def test_a_random_router_that_reads_and_writes_lands_on_the_baseline(share_short: float) -> None:
    router = Router(num_experts=16, top_k=4, num_layers=2)
    # Prompts of one token and of many, each followed by a few generated tokens.
    lengths = (6, 45) * 120
    table = make_random_trace(lengths, router=router, num_prompt_tokens=5, seed=3)
    table = shorten_decisions(table, share=share_short)
    sizes = {("decoder", layer): 1000 for layer in range(2)}
    result = simulate(table, "4", router=router, tokens_per_batch=3, expert_bytes=sizes)
    for phase in ("prefill", "decode"):
        for policy in POLICIES:
            item = find(result, policy, "4", phase)
            assert item.hit_rate is not None
            assert item.baseline.hit_rate is not None
            (size,) = (each for each in result.phases if each.phase == phase)
            # The baseline has at least 2,000 steps of both phases together.
            num_requests = min(size.num_steps, 400) * router.top_k * (1 - share_short / 2)
            error = np.sqrt(0.25 * 2 / num_requests)
            assert abs(item.hit_rate - item.baseline.hit_rate) < 5 * error, (phase, policy)
            assert item.bytes_per_token is not None
            assert item.baseline.bytes_per_token is not None
            # A random router needs as many experts, of which it moves those that it misses.
            needed, expected = (
                moved / (1 - rate)
                for moved, rate in (
                    (item.bytes_per_token, item.hit_rate),
                    (item.baseline.bytes_per_token, item.baseline.hit_rate),
                )
            )
            assert expected == pytest.approx(needed, rel=0.01)


def test_hits_of_a_group_are_those_of_its_steps() -> None:
    router = Router(num_experts=12, top_k=3, num_layers=2)
    table = make_random_trace(LENGTHS, router=router, num_prompt_tokens=5)
    reader = DecisionReader(open_rows(table, router=router), columns=COLUMNS)
    sizes = {("decoder", 0): 7, ("decoder", 1): 10}
    budgets = parse_budgets("2,5")
    result = simulate_caches(reader, budgets=budgets, expert_bytes=sizes, by="domain")
    assert result.by == "domain"
    whole = simulate(table, "2,5", router=router, expert_bytes=sizes)
    assert (whole.by, whole.groups) == (None, ())
    assert whole.policies == result.policies
    domain_of = {row["prompt_id"]: row["domain"] for row in table.to_pylist()}
    assert len(result.groups) == 2 * 2 * 2 * len(POLICIES)
    for item in result.groups:
        capacity = int(item.budget)
        hits = moved = 0
        by_prompt: dict[str, list[float]] = {}
        for layer in range(2):
            steps = list_steps(table, layer=layer)
            static = find_static_sets(table, layer=layer, capacity=capacity)
            of_step = list_hits(steps, item.policy, capacity=capacity, static=static)
            for step, number in zip(steps, of_step, strict=True):
                if (domain_of[step.prompt_id], step.phase) == (item.group, item.phase):
                    missed = len(step.needed) - number
                    hits, moved = hits + number, moved + missed * (7, 10)[layer]
                    values = [1.0] * number + [0.0] * missed
                    by_prompt.setdefault(step.prompt_id, []).extend(values)
        expected = find_ratio(by_prompt.values())
        assert (item.hit_rate, item.hit_rate_low, item.hit_rate_high) == pytest.approx(expected)
        tokens = [min(n, 5) if item.phase == "prefill" else max(0, n - 5) for n in LENGTHS]
        assert item.num_tokens == sum(tokens[("code", "prose").index(item.group) :: 2])
        assert item.bytes_per_token == pytest.approx(moved / item.num_tokens)
    shown = result.list_groups_of_verdict()
    assert [group.group for group in shown] == ["code", "prose"]
    assert set(shown[0].hit_rates) == set(POLICIES)


def test_a_step_is_of_the_group_of_its_first_token() -> None:
    router = Router(num_experts=12, top_k=3, num_layers=2)
    table = make_random_trace((6, 3), router=router)
    options: dict[str, Any] = {"budgets": parse_budgets("4"), "by": "position"}
    reader = DecisionReader(open_rows(table, router=router), by="position", columns=COLUMNS)
    result = simulate_caches(reader, **options)
    tokens = {(item.phase, item.group): item.num_tokens for item in result.groups}
    decoded = {("decode", str(number)): 2 if number < 3 else 1 for number in range(6)}
    assert tokens == {("prefill", "0"): 9} | decoded
    assert any(note.startswith("7 tokens of prompts are counted") for note in result.notes)
    # The interval over all is still that of prompts, not of their parts.
    assert result.policies == simulate(table, "4", router=router).policies


def test_too_many_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moetool.analysis.caching.measure._MOST_CELLS", 20_000)
    router = Router()
    reader = DecisionReader(
        open_rows(make_random_trace(LENGTHS), router=router), by="prompt_id", columns=COLUMNS
    )
    with pytest.raises(InputError, match="7 groups of 'prompt_id' and 3 layers"):
        simulate_caches(reader, budgets=parse_budgets("2"), by="prompt_id")


def test_static_sets_suit_their_phase_and_no_bound_mixes_phases() -> None:
    router = Router(num_experts=16, top_k=2, num_layers=1)
    table = make_random_trace((30,) * 12, router=router, num_prompt_tokens=10)
    # Prompts choose among experts 0 to 7, generated tokens among 8 to 15.
    expert = table.column("expert").to_numpy() % 8
    is_decoded = table.column("position").to_numpy() >= 10
    moved = expert + 8 * is_decoded
    # A decision may have got an expert twice.
    moved[1::2] = np.where(
        moved[1::2] == moved[::2], moved[1::2] // 8 * 8 + (moved[1::2] + 1) % 8, moved[1::2]
    )
    index = table.column_names.index("expert")
    table = table.set_column(index, "expert", pa.array(moved.astype(np.int16)))
    result = simulate(table, "8", router=router, tokens_per_batch=1)
    for phase in ("prefill", "decode"):
        assert find(result, "static", "8", phase).hit_rate == 1
    assert result.has_generated_tokens
    assert result.verdict is not None
    assert result.verdict[1] is None


def test_bytes_follow_from_misses_and_sizes() -> None:
    router = Router(num_layers=2)
    table = make_random_trace(LENGTHS, router=router, num_prompt_tokens=4)
    sizes = {("decoder", 0): 1000, ("decoder", 1): 300}
    result = simulate(table, "2,2.6kB", router=router, expert_bytes=sizes)
    of_bytes = find(result, "lru", "2.6kB", "decode")
    of_number = find(result, "lru", "2", "decode")
    assert of_bytes.experts_per_layer == 2
    assert of_bytes.gpu_bytes == of_number.gpu_bytes == 2600
    assert of_bytes.bytes_per_token == of_number.bytes_per_token
    moved = 0.0
    for layer in result.layers:
        steps = [step for step in list_steps(table, layer=layer.layer) if step.phase == "decode"]
        requests = sum(len(step.needed) for step in steps)
        rate = next(
            item.hit_rate
            for item in layer.policies
            if (item.policy, item.budget, item.phase) == ("lru", "2", "decode")
        )
        assert rate is not None
        moved += requests * (1 - rate) * sizes["decoder", layer.layer]
    (decode,) = (size for size in result.phases if size.phase == "decode")
    assert decode.num_tokens == sum(max(0, length - 4) for length in LENGTHS)
    assert of_number.bytes_per_token == pytest.approx(moved / decode.num_tokens)
    assert decode.uncached_bytes_per_token == 2 * 1300
    unknown = simulate(table, "2", router=router)
    assert unknown.policies[0].bytes_per_token is None
    assert unknown.policies[0].hit_rate == find(result, "static", "2", "prefill").hit_rate


def test_intervals_are_over_prompts() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=1)
    table = make_random_trace(LENGTHS, router=router, num_prompt_tokens=0)
    item = find(simulate(table, "3", router=router), "lru", "3", "decode")
    by_prompt: dict[str, list[float]] = {}
    kept: list[int] = []
    for step in list_steps(table, layer=0):
        found = by_prompt.setdefault(step.prompt_id, [])
        found += [float(expert in kept) for expert in step.needed]
        for expert in step.uses:
            kept = [expert, *(other for other in kept if other != expert)]
        del kept[3:]
    expected = find_ratio(by_prompt.values())
    assert (item.hit_rate, item.hit_rate_low, item.hit_rate_high) == pytest.approx(expected)


def test_static_sets_are_unknown_with_a_single_prompt() -> None:
    router = Router()
    result = simulate(make_random_trace((9,), router=router), "2", router=router)
    item = find(result, "static", "2", "decode")
    assert (item.hit_rate, item.bytes_per_token) == (None, None)
    assert any("Static sets are unknown" in note for note in result.notes)
    assert find(result, "lru", "2", "decode").hit_rate is not None
