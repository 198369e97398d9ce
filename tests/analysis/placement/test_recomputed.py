"""The scores of a placement follow from its JSON and the rows of the trace alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moetool import place_experts
from tests.analysis.random_traces import Router, describe_router, list_decisions, make_random_trace

NUM_GPUS, TOKENS_PER_BATCH = 4, 8


def test_scores_are_those_of_the_scored_slots_on_the_held_out_prompts() -> None:
    router = Router(num_experts=8, top_k=2, num_layers=2, popularity=(5, 3, 2, 2, 1, 1, 1, 1))
    table = make_random_trace((9, 14, 7, 11, 8, 12), router=router)
    frame = table.to_pandas()
    frame.attrs["moetool"] = describe_router(router).to_dict()
    result: dict[str, Any] = place_experts(
        frame, num_gpus=NUM_GPUS, tokens_per_batch=TOKENS_PER_BATCH
    ).to_dict()
    held_out = set(result["split"]["held_out_prompts"])
    assert len(held_out) == result["split"]["num_held_out"] == 3
    for method, figures in result["methods"].items():
        imbalance, fan_out = [], []
        for layer, slots in figures["scored_physical_to_logical"].items():
            gpu = {expert: slot // (len(slots) // NUM_GPUS) for slot, expert in enumerate(slots)}
            decisions = [
                [gpu[expert] for expert in one.experts]
                for one in list_decisions(table)
                if one.prompt_id in held_out and one.layer == int(layer)
            ]
            fan_out.append(np.mean([len(set(gpus)) for gpus in decisions]))
            batches = [
                [one for gpus in decisions[start : start + TOKENS_PER_BATCH] for one in gpus]
                for start in range(0, len(decisions) - TOKENS_PER_BATCH + 1, TOKENS_PER_BATCH)
            ]
            imbalance.append(
                np.mean(
                    [
                        max(batch.count(one) for one in range(NUM_GPUS)) * NUM_GPUS / len(batch)
                        for batch in batches
                    ]
                )
            )
        assert figures["fan_out"] == pytest.approx(np.mean(fan_out)), method
        assert figures["batch_imbalance"] == pytest.approx(np.mean(imbalance)), method
