"""Every panel shows the numbers that the library returns: over all layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from moetool.analysis.comparison.result import Agreement
from tests.report.page.browser.opening import Opening, choose, read_rows, read_table, read_twin
from tests.report.page.browser.results import Results
from tests.report.page.browser.shown import differences, shows

METHODS = {"contiguous": "contiguous", "eplb": "EPLB", "coactivation": "co-activation"}


@pytest.fixture(scope="module")
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page as it opens."""
    opening = Opening(browser)
    yield opening(page_file)
    opening.close()
    assert opening.complaints == []


def test_verdict_and_tiles(page: Page, results: Results) -> None:
    certain = [one for one in results.specialization.experts if one.is_certain_expert]
    beyond = [one for one in certain if one.is_beyond_vocabulary]
    strongest = max(beyond or certain, key=lambda one: one.lift or 0)
    text = page.locator("#verdict").inner_text()
    place = f"expert {strongest.expert} of layer {strongest.layer}"
    assert f"in {strongest.domain}, {place} gets {strongest.lift:.1f}" in text
    assert f"share of all tokens (95% interval {strongest.lift_low:.1f}" in text
    tiles = dict(
        zip(
            page.locator(".tile dt").all_inner_texts(),
            page.locator(".tile-value").all_inner_texts(),
            strict=True,
        )
    )
    layers = results.balance.layers
    busiest = max(1 + (layer.max_violation or 0) for layer in layers)
    assert tiles["prompts"] == "12"
    assert shows(tiles["tokens"], results.balance.trace.num_tokens)
    assert shows(tiles["routed layers"], len(layers))
    assert shows(tiles["experts per layer"], 12)
    assert shows(tiles["busiest expert"], busiest)
    assert shows(tiles["never chosen"], sum(len(layer.dead) for layer in layers))


@pytest.mark.parametrize("domain", [None, "law"])
def test_map_has_load_and_lift_of_each_expert(
    page: Page, results: Results, domain: str | None
) -> None:
    domains = [size.domain for size in results.specialization.domains]
    choose(page, "Domain", domain or "all")
    rows = read_twin(page, "map")
    assert len(rows) == 3 * 12
    for number, layer in enumerate(results.balance.layers):
        mean = sum(layer.load) / layer.num_experts
        for expert, load in enumerate(layer.load):
            shown = rows[number * 12 + expert]
            lifts = {
                name: results.tests[layer.layer, expert, name].lift or 0.0
                for name in (domains if domain is None else [domain])
            }
            assert lifts[shown[4]] == pytest.approx(max(lifts.values()), abs=1e-4)
            values = (layer.layer, expert, load, load / mean, shown[4], lifts[shown[4]])
            assert differences(shown, values) == []


def test_information_of_each_layer(page: Page, results: Results) -> None:
    rows = read_table(page, "domains", "What the choice")
    for shown, layer in zip(rows, results.specialization.layers, strict=True):
        assert differences(shown[:2], [layer.layer, layer.normalized]) == []
        # Permutations can't show a smaller one than that of none that reaches as much.
        is_smallest = layer.p_value == 1 / (results.specialization.num_permutations + 1)
        assert shown[2].startswith("≤ ") == is_smallest
        assert float(shown[2].removeprefix("≤ ")) == pytest.approx(layer.p_value, rel=0.05)
        assert shows(shown[3], layer.conditional_normalized)
    sizes = results.specialization.domains
    lead = page.locator("#domains .lead").inner_text()
    assert all(f"{size.domain} ({size.prompts} prompts)" in lead for size in sizes)


def test_busiest_expert_of_each_layer(page: Page, results: Results) -> None:
    rows = read_table(page, "load", "Load of the busiest")
    for shown, layer in zip(rows, results.balance.layers, strict=True):
        values = [
            *(layer.layer, _over_mean(layer.max_violation)),
            _over_mean(layer.baseline.max_violation),
            _over_mean(layer.max_violation_batch),
            _over_mean(layer.baseline.max_violation_batch),
            *(len(layer.dead), layer.baseline.num_dead),
        ]
        assert differences(shown, values) == []


def _over_mean(violation: float | None) -> float | None:
    return None if violation is None else 1 + violation


def test_capacity_slider_shows_what_each_factor_drops(page: Page, results: Results) -> None:
    by_factor = {
        share.factor: share for share in results.balance.capacity if share.policy == "position"
    }
    slider = page.locator("#capacity-slider")
    assert slider.get_attribute("max") == str(len(by_factor) - 1)
    for position, factor in enumerate(sorted(by_factor)):
        slider.fill(str(position))
        share = by_factor[factor]
        assert float(page.locator("label:has(#capacity-slider) output").inner_text()) == factor
        assert slider.get_attribute("aria-valuetext") == f"{factor:g}"
        text = page.locator("#load [aria-live] p").first.inner_text()
        dropped, at_random = text.split(" of the assignments")[0], text.split("router, ")[1]
        assert shows(dropped, share.dropped_share)
        assert shows(at_random.split(". ")[0], share.baseline.dropped_share)
        assert share.by_position is not None
        rows = read_table(page, "load", "Dropped by place")
        tenths = zip(rows, share.by_position, share.baseline.by_position, strict=True)
        for shown, place, random in tenths:
            assert differences(shown[1:], [place, random]) == []


def test_gpu_slider_shows_each_placement(page: Page, results: Results) -> None:
    slider = page.locator("#gpu-slider")
    numbers = []
    for position in range(int(slider.get_attribute("max") or 0) + 1):
        slider.fill(str(position))
        num_gpus = int(page.locator("label:has(#gpu-slider) output").inner_text())
        numbers.append(num_gpus)
        placement = results.place(num_gpus)
        known = {name: found for name, found in placement.methods.items() if found is not None}
        rows = read_table(page, "load", f"Fitted on {placement.split.num_fitted} prompts")
        for shown, (name, found) in zip(rows, known.items(), strict=True):
            values = [
                *(METHODS[name], found.batch_imbalance, found.baseline.batch_imbalance),
                *(found.fan_out, found.baseline.fan_out, found.all_to_all_bytes_per_token),
            ]
            assert differences(shown, values) == []
    # Those among which 12 experts can be shared out evenly.
    assert numbers == [2, 4]


def test_experts_touched_by_a_batch(page: Page, results: Results) -> None:
    for kind in {each.of for each in results.caching.touched}:
        rows = read_table(page, "compute", f"Tokens of {kind}")
        mine = [each for each in results.caching.touched if each.of == kind]
        for shown, each in zip(rows, mine, strict=True):
            values = [each.batch_size, each.experts, each.baseline.experts, each.num_batches]
            assert differences(shown, values) == []


def test_parameters_and_flops_of_the_model(page: Page) -> None:
    sizes = read_table(page, "compute", "Parameters")
    total, active = 46_702_792_704, 12_879_925_248
    assert differences(sizes[0], ["all", total, 1]) == []
    assert differences(sizes[1], ["active for a token", active, active / total]) == []
    flops = read_table(page, "compute", "FLOPs per token in a prompt of 512 tokens")
    dense, routed = 93_285_515_264.0, 25_640_566_784.5
    assert differences(flops[0], ["if all experts ran", dense, 1]) == []
    assert differences(flops[1], ["as routed", routed, routed / dense]) == []


def test_prediction_of_the_next_layer(page: Page, results: Results) -> None:
    rows = read_table(page, "togetherness", "Share of the next layer")
    known = [layer for layer in results.coactivation.layers if layer.next_layer is not None]
    for shown, layer in zip(rows, known, strict=True):
        prediction = layer.next_layer.prediction if layer.next_layer else None
        assert prediction is not None
        shares = (prediction.hit_rate, prediction.popularity, prediction.baseline.hit_rate)
        assert differences(shown, [layer.layer, *shares]) == []


def test_comparison_by_layer_and_group(page: Page, results: Results) -> None:
    comparison = results.comparison
    overall = comparison.overall
    rows = read_table(page, "comparison", "Decisions with other experts")
    for shown, layer in zip(rows, comparison.layers, strict=True):
        shares = (layer.changed_decisions, layer.baseline.changed_decisions)
        values = [layer.layer, *shares, layer.first_choice_flips, layer.overlap]
        assert differences([*shown[:2], *shown[3:]], values) == []
        assert differences(shown[2].split(" to "), _limits(layer)) == []
    groups = read_table(page, "comparison", "Decisions with other experts, by domain")
    for shown, group in zip(groups, comparison.groups, strict=True):
        found = [group.changed_decisions, group.first_choice_flips]
        assert differences([shown[1], shown[3]], found) == []
        assert differences(shown[2].split(" to "), _limits(group)) == []
    lead = page.locator("#comparison .lead").inner_text()
    assert shows(lead.split(" of ")[0], overall.changed_decisions)
    assert shows(lead.split(" of ")[1].split(" decisions")[0], overall.num_decisions)
    assert (
        differences(lead.split("interval ")[1].split(")")[0].split(" to "), _limits(overall)) == []
    )


def _limits(agreement: Agreement) -> list[float | None]:
    return [agreement.changed_decisions_low, agreement.changed_decisions_high]


def test_tokens_that_changed_in_most_layers(page: Page, results: Results) -> None:
    pairs = zip(results.decisions, results.other_decisions, strict=True)
    counts = Counter(
        (one.prompt_id, one.position)
        for one, other in pairs
        if set(one.experts) != set(other.experts)
    )
    shown = page.locator("#comparison .inline button").all_inner_texts()
    numbers = [int(text.rsplit("(")[-1].removesuffix(")")) for text in shown]
    assert numbers == sorted(counts.values(), reverse=True)[:20]


def test_data_names_the_trace_and_all_notes(page: Page, results: Results) -> None:
    facts = dict(read_rows(page.locator("#data details table")))
    assert facts["trace"] == "planted.parquet"
    assert facts["model"] == "org/planted"
    assert facts["complete"] == "yes"
    assert facts["traced with torch"] == "2.0"
    shown = page.locator("#data li").all_inner_texts()
    notes = [
        *(*results.balance.notes, *results.specialization.notes, *results.coactivation.notes),
        *(*results.caching.notes, *results.comparison.notes),
    ]
    # Options are of commands: a reader of the page has none.
    of_commands = [note for note in notes if " --" in f" {note}" or "(route-trace" in note]
    assert of_commands
    assert len(of_commands) < len(notes)
    for note in notes:
        assert any(note in line for line in shown) == (note not in of_commands), note
