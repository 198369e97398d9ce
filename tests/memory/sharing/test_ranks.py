"""Rows of weights that each of several GPUs would hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.memory.scenario import Scenario
from moetool.memory.sharing.ranks import list_ranks
from moetool.quantizing.kinds import Quantization
from tests.memory.saved_configs import make_runs, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=2, dtype="float32")


def test_there_is_a_row_for_each_strategy_and_number_of_gpus(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    held = runs.loader.load(SCENARIO).routed_held
    assert held is not None
    ranks = list_ranks(
        held,
        gpu_memory_bytes=2**40,
        num_gpus=None,
        reserve_bytes=0,
        quantization=Quantization.NONE,
    )
    assert [(each.way, each.num_gpus) for each in ranks] == [
        ("device_map", 1),
        *((way, number) for way in ("tensor_parallel", "expert_parallel") for number in (2, 4, 8)),
    ]
    weights_bytes = runs.simulate(SCENARIO).figures.weights_bytes
    assert sum(ranks[0].weights_bytes) == pytest.approx(weights_bytes, rel=0.01)
    assert ranks[0].num_layers == (4,)
