"""Placements of traces in which some choices ran no expert, next to a random router of that kind."""

from __future__ import annotations

import pytest

from moetool.analysis.placement.measure import PlacementOptions, measure_placement
from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.summary import SentBytes
from tests.analysis.dropped_choices import drop_choices
from tests.analysis.random_traces import Router, make_random_trace, open_rows

ROUTER = Router(num_experts=8, top_k=2, num_layers=4)
OPTIONS = PlacementOptions(tokens_per_batch=64, sent=SentBytes(hidden_size=64, bytes_per_value=2))


@pytest.mark.parametrize(
    ("share", "share_of_decisions", "fan_out"),
    [
        # Of 8 experts on 4 GPUs, two are on different ones in 6 of 7 choices.
        (0.0, 0.0, 1 + 6 / 7),
        (0.6, 0.0, 1 + 0.4 * 6 / 7),
        (0.6, 0.25, 0.75 * (1 + 0.4 * 6 / 7)),
    ],
)
def test_random_router_lands_on_the_baseline(
    share: float, share_of_decisions: float, fan_out: float
) -> None:
    table = make_random_trace([60] * 40, router=ROUTER, seed=3)
    table = drop_choices(table, share, share_of_decisions=share_of_decisions)
    result = measure_placement(open_rows(table, router=ROUTER), Cluster(4), OPTIONS)
    for found in result.methods.values():
        assert found is not None
        assert found.fan_out is not None
        assert found.baseline.fan_out == pytest.approx(fan_out, abs=0.03)
        # 4,800 decisions; the GPUs of one deviate by at most 1 from the mean.
        assert found.fan_out == pytest.approx(found.baseline.fan_out, abs=4 / 4_800**0.5)
        assert found.all_to_all_bytes_per_token == pytest.approx(
            found.baseline.all_to_all_bytes_per_token, rel=4 / 4_800**0.5
        )
        # 72 batches, whose imbalance deviates by less than 0.1.
        assert found.batch_imbalance == pytest.approx(
            found.baseline.batch_imbalance, abs=4 * 0.1 / 72**0.5
        )
    dropped = [note for note in result.notes if note.endswith("choices ran no expert.")]
    assert len(dropped) == (share > 0)


def test_a_trace_in_which_no_expert_ran_has_no_baseline_of_balance() -> None:
    table = drop_choices(make_random_trace([9] * 4, router=ROUTER), 1.0, share_of_decisions=1.0)
    result = measure_placement(open_rows(table, router=ROUTER), Cluster(4), OPTIONS)
    baseline = result.layers[0].baseline["eplb"]
    assert (baseline.batch_imbalance, baseline.global_imbalance) == (None, None)
    assert (baseline.fan_out, result.layers[0].scores["eplb"].fan_out) == (0, 0)
