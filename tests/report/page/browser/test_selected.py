"""Panels on what is selected show the library's numbers of it: an expert, a layer, a token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from moetool.analysis.specialization.result import DomainExpertTest
from tests.report.page.browser.opening import (
    Opening,
    choose,
    find_table,
    read_rows,
    read_table,
    read_twin,
)
from tests.report.page.browser.results import Results
from tests.report.page.browser.shown import differences, interval, shows

LAYER, EXPERT = 2, 4
CERTAINTIES = ("not significant", "significant", "certain", "beyond vocabulary")


@pytest.fixture(scope="module")
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page with an expert of the second layer selected."""
    opening = Opening(browser)
    yield opening(page_file, hash_="#layer=2&expert=4")
    opening.close()
    assert opening.complaints == []


def test_card_states_load_and_prompts(page: Page, results: Results) -> None:
    layer = results.balance.layers[1]
    assert page.locator("#expert h2").inner_text() == "Expert 4 of layer 2"
    words = page.locator("#expert p").first.inner_text().split()
    load = layer.load[EXPERT]
    assert shows(words[0], load / 288)
    assert f"({load:,})" in " ".join(words)
    assert shows(words[words.index("mean") - 2], load * 12 / sum(layer.load))
    rank = 1 + sum(each > load for each in layer.load)
    assert f"number {rank} of 12 by load" in " ".join(words)
    mine = {one.prompt_id for one in results.decisions if one.layer == 2 and 4 in one.experts}
    assert f"{len(mine)} of 12 prompts use it" in " ".join(words)


def test_card_has_lift_and_interval_in_each_domain(page: Page, results: Results) -> None:
    rows = read_table(page, "expert", "Its share of the tokens")
    assert sorted(row[0] for row in rows) == ["code", "law", "prose"]
    lifts = [results.tests[LAYER, EXPERT, row[0]] for row in rows]
    in_order = [one.lift or 0.0 for one in lifts]
    assert in_order == sorted(in_order, reverse=True)
    for shown, test in zip(rows, lifts, strict=True):
        limits = interval(shown[2])
        assert shows(shown[1], test.lift)
        assert limits
        assert differences(limits, [test.lift_low, test.lift_high]) == []
        assert shown[3] == CERTAINTIES[count_hurdles(test)]
    faint = page.locator("#expert .block").first.locator("tbody tr:has(.fill.faint)")
    assert faint.count() == sum(not count_hurdles(test) for test in lifts)


def count_hurdles(test: DomainExpertTest) -> int:
    """Return how many thresholds a test passes, each of which is higher than the one before."""
    return test.is_domain_expert + test.is_certain_expert + test.is_beyond_vocabulary


def test_card_explains_certainty(page: Page) -> None:
    words = page.locator("#expert .hint").all_inner_texts()
    assert any(all(f"{name}:" in each.lower() for name in CERTAINTIES[1:]) for each in words)


def test_card_has_characteristic_tokens(page: Page, results: Results) -> None:
    mine = [
        one
        for one in results.tokens.tokens
        if (one.layer, one.expert) == (LAYER, EXPERT) and one.is_beyond_chance
    ]
    assert mine
    rows = read_table(page, "expert", "Tokens that go here")
    for shown, one in zip(rows, mine[:10], strict=True):
        text = str(one.token).replace("Ġ", " ").replace("Ċ", "⏎\n")
        assert shown[0] == text
        count, occurrences = shown[1].split(" of ")
        values = [one.assignments, one.occurrences, one.lift]
        assert differences([count, occurrences, shown[2]], values) == []


def count_pairs(results: Results) -> tuple[Counter[int], Counter[frozenset[int]], int]:
    """Return decisions of the layer by expert, by pair, and in all, counted one by one."""
    mine = [one.experts for one in results.decisions if one.layer == LAYER]
    singles = Counter(expert for experts in mine for expert in experts)
    pairs = Counter(frozenset(pair) for experts in mine for pair in combinations(experts, 2))
    return singles, pairs, len(mine)


def test_card_has_partners_by_lift(page: Page, results: Results) -> None:
    singles, pairs, total = count_pairs(results)
    lifts = {
        next(iter(pair - {EXPERT})): count
        * total
        / (singles[EXPERT] * singles[next(iter(pair - {EXPERT}))])
        for pair, count in pairs.items()
        if EXPERT in pair
    }
    rows = read_table(page, "expert", "How often both are chosen")
    strongest = sorted(lifts, key=lambda one: -lifts[one])[:5]
    tests = list_pairs(results)
    for shown, one in zip(rows, strongest, strict=True):
        expected = tests[frozenset((EXPERT, one))]["expected_lift"]
        assert differences(shown, [f"expert {one}", lifts[one], expected]) == []


def list_pairs(results: Results) -> dict[frozenset[int], dict[str, Any]]:
    """Return the rows of the layer's pairs, by their experts."""
    return {
        frozenset((row["expert_i"], row["expert_j"])): row
        for row in results.coactivation.iter_rows()
        if row["layer"] == LAYER and row["next_layer"] is None
    }


def walk_grid(page: Page, panel: str, num_rows: int) -> list[str]:
    """Return what a grid of 12 columns reads out at each cell, moved to by keys."""
    page.locator(f"#{panel} canvas").focus()
    for key, number in (("ArrowUp", num_rows), ("ArrowLeft", 12)):
        for _ in range(number):
            page.keyboard.press(key)
    readout = page.locator(f"#{panel} .readout")
    found = []
    for row in range(num_rows):
        for column in range(12):
            found.append(readout.inner_text())
            if column < 11:
                # Every other row is read from the right to the left.
                page.keyboard.press("ArrowLeft" if row % 2 else "ArrowRight")
        page.keyboard.press("ArrowDown")
    return found


def test_grid_of_pairs_reads_out_each(page: Page, results: Results) -> None:
    singles, counted, total = count_pairs(results)
    tests = list_pairs(results)
    texts = [text for text in walk_grid(page, "togetherness", 12) if "with itself" not in text]
    pattern = r"Experts (\d+) and (\d+): (\S+) what their loads explain \(lift (\S+)\)(, not significant)?"
    found = [re.fullmatch(pattern, text) for text in texts]
    shown = {(int(one[1]), int(one[2])): one.groups()[2:] for one in found if one}
    assert set(shown) == set(permutations(range(12), 2))
    assert {each[2] is None for each in shown.values()} == {True, False}
    for pair, (over_expected, lift, is_faint) in shown.items():
        test = tests[frozenset(pair)]
        value = counted[frozenset(pair)] * total / (singles[pair[0]] * singles[pair[1]])
        assert differences([over_expected, lift], [value / test["expected_lift"], value]) == []
        assert (is_faint is None) == bool(test["is_significant"])


def test_grid_of_domains_reads_out_each(page: Page, results: Results) -> None:
    texts = walk_grid(page, "domains", 3)
    pattern = r"(\w+), expert (\d+): lift (\S+) \((\S+) to (\S+)\)(, not significant)?"
    found = [re.fullmatch(pattern, text) for text in texts]
    shown = {(one[1], int(one[2])): one.groups()[2:] for one in found if one}
    assert set(shown) == set(product(("code", "law", "prose"), range(12)))
    for (domain, expert), (lift, low, high, is_faint) in shown.items():
        test = results.tests[LAYER, expert, domain]
        limits = [test.lift_low, test.lift_high]
        assert differences([lift, low, high], [test.lift, *limits]) == []
        assert (is_faint is None) == (test.q_value is not None and test.q_value <= 0.05)


def test_card_counts_weights(page: Page, results: Results) -> None:
    rows = read_table(page, "expert", "Its weight in")
    weights = [
        weight
        for one in results.decisions
        if one.layer == LAYER
        for expert, weight in zip(one.experts, one.weights, strict=True)
        if expert == EXPERT
    ]
    counts = [int(row[1]) for row in rows]
    assert sum(counts) == len(weights)
    # The page has weights in steps of 1/255: only those near an edge may be in the bin next to it.
    largest = max(weights)
    edges = [[float(end) for end in row[0].split(" to ")] for row in rows]
    assert [low for low, _ in edges[1:]] == [high for _, high in edges[:-1]]
    assert edges[0][0] == 0
    assert edges[-1][0] - 0.002 < largest < edges[-1][1] + 0.002
    for (low, high), count in zip(edges, counts, strict=True):
        surely = sum(low + 0.002 < weight < high - 0.002 for weight in weights)
        maybe = sum(low - 0.002 < weight < high + 0.002 for weight in weights)
        assert surely <= count <= maybe


def test_card_has_contexts_with_the_largest_weights(page: Page, results: Results) -> None:
    shown = [
        str(label).split("weight ")[1]
        for label in page.locator("#expert .contexts button").evaluate_all(
            "all => all.map(one => one.ariaLabel)"
        )
    ]
    weights = sorted(
        (
            weight
            for one in results.decisions
            if one.layer == LAYER
            for expert, weight in zip(one.experts, one.weights, strict=True)
            if expert == EXPERT
        ),
        reverse=True,
    )
    assert len(shown) == 10
    assert [float(text) for text in shown] == pytest.approx(weights[:10], abs=0.008)


def test_domains_of_the_layer(page: Page, results: Results) -> None:
    rows = read_twin(page, "domains")
    assert len(rows) == 3 * 12
    for shown in rows:
        test = results.tests[LAYER, int(shown[1]), shown[0]]
        assert differences(shown[2:5], [test.lift, test.lift_low, test.lift_high]) == []


def test_pairs_of_the_layer(page: Page, results: Results) -> None:
    layer = results.coactivation.layers[1]
    singles, counted, total = count_pairs(results)
    rows = read_twin(page, "togetherness")
    for shown, pair in zip(rows, layer.pairs[:20], strict=True):
        one, other = int(shown[0]), int(shown[1])
        assert (one, other) == pair.experts
        count = counted[frozenset(pair.experts)]
        lift = count * total / (singles[one] * singles[other])
        assert differences(shown[2:5], [count, lift, pair.expected_lift]) == []
        limits = interval(shown[5])
        assert (limits is None) == (pair.lift_low is None)
        if limits:
            assert differences(limits, [pair.lift_low, pair.lift_high]) == []
    words = page.locator("#togetherness p").nth(1).inner_text()
    assert words.startswith(f"Layer 2: {layer.num_above} of {layer.num_pairs} pairs")
    assert words.endswith(f"{layer.num_below} less.")


def test_groups_of_the_layer(page: Page, results: Results) -> None:
    groups = results.coactivation.layers[1].expert_groups
    assert (4, 5) in [group.experts for group in groups]
    rows = read_table(page, "togetherness", "Groups whose members")
    for shown, group in zip(rows, groups, strict=True):
        assert shown[0] == ", ".join(map(str, group.experts))
        shares = (group.share_of_pairs, group.loads.share_of_pairs, group.baseline.share_of_pairs)
        assert differences(shown[1:4], shares) == []


def test_flow_to_the_next_layer(page: Page, results: Results) -> None:
    transition = results.coactivation.layers[1].next_layer
    assert transition is not None
    rows = read_table(page, "togetherness", "From layer 2 to layer 3")
    for shown, pair in zip(rows, transition.pairs[:10], strict=True):
        first, second = pair.experts
        values = (f"{first} → {second}", pair.lift, pair.count, pair.given_i)
        assert differences(shown, values) == []


def test_last_layer_has_no_next(page: Page) -> None:
    choose(page, "Layer", "3")
    missing = page.locator("#togetherness .missing").all_inner_texts()
    choose(page, "Layer", "2")
    choose(page, "Expert", "4")
    assert "No routed layer of the same stack follows this one." in missing


@pytest.mark.parametrize("prompt", [0, 7])
def test_reader_has_the_experts_of_each_token(page: Page, results: Results, prompt: int) -> None:
    page.locator(".prompts button").nth(prompt).click()
    heading = page.locator("#reader h3").inner_text()
    domain, name = heading.split(" · prompt ")
    mine = {(one.position, one.layer): one for one in results.decisions if one.prompt_id == name}
    assert {one.domain for one in mine.values()} == {domain}
    others = {
        (one.position, one.layer): one for one in results.other_decisions if one.prompt_id == name
    }
    tokens = page.locator("#reader .token")
    assert tokens.count() == 24
    for position in (0, 11, 23):
        tokens.nth(position).hover()
        assert (mine[position, 1].phase == "decode") == (
            "new" in (tokens.nth(position).get_attribute("class") or "").split()
        )
        rows = read_rows(find_table(page, "reader", "Experts of"))
        for shown in rows:
            decision = mine[position, int(shown[0])]
            pairs = [text.split() for text in _split_weights(shown[1:3])]
            other = others[position, int(shown[0])]
            is_same = set(other.experts) == set(decision.experts)
            there = f"there {', '.join(map(str, other.experts))}"
            assert shown[3] == ("same" if is_same else there)
            assert [int(expert) for expert, _ in pairs] == list(decision.experts)
            weights = [float(weight) for _, weight in pairs]
            assert weights == pytest.approx(decision.weights, abs=0.008)
        assert [int(row[0]) for row in rows] == [1, 2, 3]


def _split_weights(cells: list[str]) -> list[str]:
    """Return an expert and its weight of each cell, with a space between them."""
    return [f"{cell[:-4]} {cell[-4:]}" for cell in cells]


def test_reader_outlines_tokens_that_the_other_trace_changed(page: Page, results: Results) -> None:
    name = page.locator("#reader h3").inner_text().split(" · prompt ")[1]
    changed = {
        one.position
        for one, other in zip(results.decisions, results.other_decisions, strict=True)
        if (one.prompt_id, one.layer) == (name, LAYER) and set(one.experts) != set(other.experts)
    }
    classes = page.locator("#reader .token").evaluate_all("all => all.map(one => one.className)")
    assert changed
    assert {at for at, found in enumerate(classes) if "changed" in found.split()} == changed
