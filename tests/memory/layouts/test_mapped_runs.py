"""Traced runs on the devices of a map keep their routing there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moetool.catalogue.gpus import find_gpu
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.layouts.mapped_runs import run_by_device_map
from moetool.memory.scenario import Scenario, Task
from tests.memory.saved_configs import make_runs, save_config

GENERATING = Scenario(batch_size=5, num_prompt_tokens=24, num_new_tokens=2, dtype="bfloat16")
TRACING = replace(GENERATING, task=Task.TRACE)


def test_the_routing_of_each_layer_is_kept_on_its_gpu(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path, num_hidden_layers=4))
    loader = runs.loader
    alone = [runs.run(scenario) for scenario in (GENERATING, TRACING)]
    whole, shared = (
        [
            run_by_device_map(loader, scenario, memory_bytes=memory_bytes, num_gpus=num_gpus)
            for scenario in (GENERATING, TRACING)
        ]
        for memory_bytes, num_gpus in (
            (find_gpu("24GiB").memory_bytes, 1),
            (CONTEXT_BYTES + loader.load(GENERATING).skeleton.num_parameters() * 2, 2),
        )
    )
    # The same in another way: all layers run, and none is repeated.
    assert [run.figures for (run,) in whole] == [run.figures for run in alone if run is not None]
    for plain, traced in zip(*shared, strict=True):
        assert traced.figures.peak_allocated_bytes > plain.figures.peak_allocated_bytes


def test_gpus_beyond_the_layers_hold_nothing_but_their_context(tmp_path: Path) -> None:
    loader = make_runs(save_config("olmoe", tmp_path, num_hidden_layers=2)).loader
    memory_bytes = find_gpu("24GiB").memory_bytes
    runs = run_by_device_map(loader, GENERATING, memory_bytes=memory_bytes, num_gpus=4)
    weights = [run.figures.weights_bytes for run in runs]
    (whole,) = run_by_device_map(loader, GENERATING, memory_bytes=memory_bytes, num_gpus=1)
    assert weights[3] == 0 < min(weights[:2])
    assert sum(weights) == whole.figures.weights_bytes
    empty = runs[3]
    assert empty.figures.peak_reserved_bytes == 0
    assert empty.figures.total_device_bytes == CONTEXT_BYTES
    assert empty.limit_to(CONTEXT_BYTES) == empty
